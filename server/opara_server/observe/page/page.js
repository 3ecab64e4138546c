"use strict";
// Names come from folders and models: they are shown as text, through textContent, never as HTML.

const POLL_MS = 2000;
const WINDOW = 5; // polls over which rates are taken
const HISTORY = 60; // rates in a model's line
const KINDS = 5; // of operators that have a colour of their own
const [GUTTER, LANE] = [110, 26]; // pixels

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}
const el = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(5000), cache: "no-store" });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer;
}
// Numbers for a person

function time(us) {
  if (us === null || !Number.isFinite(us)) return "–";
  const [value, unit] = us < 1e3 ? [us, "µs"] : us < 1e6 ? [us / 1e3, "ms"] : [us / 1e6, "s"];
  return `${value.toPrecision(3).replace(/e.*/, "")} ${unit}`;
}
const number = (value) => (value === null ? "–" : value >= 100 ? value.toFixed(0) : value.toFixed(1));
const share = (value) => (value === null ? "–" : `${(100 * value).toFixed(0)} %`);
const streams = (count) => (count === 1 ? "1 stream" : `${count} streams`);
const schedule = (plan) => `${plan.lowering} ${plan.policy}${plan.compact ? " compact" : ""}`;

// What Prometheus would read
function* samplesOf(text) {
  const line = /^(opara_\w+)\{(.*)\} (\S+)/gm;
  for (const [, name, inside, value] of text.matchAll(line)) {
    const labels = {};
    for (const [, key, quoted] of inside.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[key] = quoted.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
    }
    yield [name, labels, Number(value.replace("Inf", "Infinity"))];
  }
}

function reading(text) {
  const models = new Map();
  for (const [name, labels, value] of samplesOf(text)) {
    if (!models.has(labels.model)) {
      models.set(labels.model, { answered: 0, errors: 0, rows: 0, padded: 0, batches: 0, waiting: 0, seconds: [] });
    }
    const model = models.get(labels.model);
    if (name === "opara_requests_total") model[labels.code === "OK" ? "answered" : "errors"] += value;
    else if (name === "opara_rows_total") model.rows = value;
    else if (name === "opara_padded_rows_total") model.padded = value;
    else if (name === "opara_batches_total") model.batches = value;
    else if (name === "opara_queue_depth_rows") model.waiting = value;
    else if (name === "opara_request_seconds_bucket") model.seconds.push([Number(labels.le.replace("+Inf", "Infinity")), value]);
  }
  return models;
}

// As histogram_quantile: linear within a bucket; in µs. ``counts``: [upper bound in s, requests up to it]
function quantile(q, counts) {
  const total = counts.length ? counts.at(-1)[1] : 0;
  if (!total) return null;
  const at = counts.findIndex(([, count]) => count >= q * total);
  const [low, below] = at ? counts[at - 1] : [0, 0];
  const [high, upTo] = counts[at];
  return 1e6 * (high === Infinity ? low : low + ((high - low) * (q * total - below)) / (upTo - below));
}

function rates(before, now, seconds) {
  const change = (key) => now[key] - before[key];
  const counts = now.seconds.map(([bound, count], i) => [bound, count - (before.seconds[i]?.[1] ?? 0)]);
  const batches = change("batches");
  const ran = change("rows") + change("padded");
  return {
    requests: (change("answered") + change("errors")) / seconds,
    errors: change("errors") / seconds,
    p50: quantile(0.5, counts),
    p99: quantile(0.99, counts),
    rows: batches ? change("rows") / batches : null,
    padding: ran ? change("padded") / ran : null,
    waiting: now.waiting,
  };
}

// Models
const readings = []; // [ms, by model], the oldest first
const lines = new Map(); // by model its rates of requests

function live(name) {
  const known = readings.filter(([, models]) => models.has(name));
  if (known.length < 2) return null;
  const [[begin, first], [end, last]] = [known[0], known.at(-1)];
  return rates(first.get(name), last.get(name), (end - begin) / 1e3);
}

function spark(values) {
  const most = Math.max(...values, 1);
  const points = values.map((value, i) => `${(100 * (i + HISTORY - values.length)) / (HISTORY - 1)},${23 - (22 * value) / most}`);
  const label = `requests per second, at most ${number(most)}`;
  return svg("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("polyline", { points: points.join(" "), "vector-effect": "non-scaling-stroke" }));
}

function showModels(models) {
  const rows = models.map(({ name, state, reason }) => {
    const seen = state === "READY" ? live(name) : null;
    const values = seen
      ? [number(seen.requests), number(seen.errors), time(seen.p50), time(seen.p99), number(seen.rows), share(seen.padding), seen.waiting]
      : Array(7).fill("–");
    const line = lines.get(name) ?? lines.set(name, []).get(name);
    if (seen) line.push(seen.requests);
    line.splice(0, line.length - HISTORY);
    const kind = { READY: "ready", FAILED: "failed" }[state] ?? "quiet";
    return el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: kind }, state, ...(reason ? [el("small", {}, reason)] : [])),
      ...values.map((value) => el("td", {}, value)), el("td", {}, line.length ? spark(line) : "–"));
  });
  $("models").tBodies[0].replaceChildren(...rows);
}

// Plans
const opened = new Map(); // by key what one batch size shows

function showPlans(models) {
  const ready = models.filter((model) => model.state === "READY");
  const focused = document.activeElement?.closest("details[id]")?.id;
  $("plans").replaceChildren(...ready.map((model) => {
    const fallback = model.fallback ? " – its operators could not be had: the server's log says why" : "";
    return el("article", {}, el("h3", {}, model.name, " ", el("span", { class: "quiet" }, `on ${model.device} (${model.device_name})${fallback}`)),
      ...model.buckets.map((bucket) => planOf(model.name, bucket)));
  }));
  if (focused) document.getElementById(focused)?.querySelector("summary").focus();
}

function planOf(model, bucket) {
  const key = `${model}/${bucket.batch_size}`;
  const known = opened.get(key) ?? { open: location.hash === `#${encodeURIComponent(key)}`, shown: "", body: el("div", {}, "…") };
  opened.set(key, known);
  const speedup = bucket.sequential_us / bucket.measured_us;
  const details = el("details", { id: key },
    el("summary", {}, el("strong", {}, `batch size ${bucket.batch_size}`), el("span", {}, schedule(bucket)),
      el("span", {}, `${bucket.operators} operators, ${streams(bucket.streams)}`),
      el("span", {}, `${time(bucket.measured_us)}, ${speedup.toFixed(2)}× sequential`)),
    known.body);
  const fill = async () => {
    const state = JSON.stringify(bucket);
    if (!details.open || known.shown === state) return;
    try {
      const query = new URLSearchParams({ model, batch_size: bucket.batch_size });
      showBucket(known.body, await (await ask(`/bucket.json?${query}`)).json());
      known.shown = state;
    } catch (error) {
      known.body.replaceChildren(el("p", { class: "lost" }, `It cannot be had now (${error.message}).`));
    }
  };
  details.addEventListener("toggle", () => {
    if (details.open && !known.open) history.replaceState(null, "", `#${encodeURIComponent(key)}`);
    known.open = details.open;
    fill();
  });
  details.open = known.open;
  return details;
}

function showBucket(body, { sample, candidates, chosen }) {
  const parts = sample ? [timeline(sample), busyAtOnce(sample), asTable(sample)] : [el("p", {}, "No replay could be traced: the server's log says why.")];
  body.replaceChildren(...parts, el("h4", {}, "Measured"), candidatesTable(candidates, chosen));
}

function candidatesTable(candidates, chosen) {
  const heads = ["candidate", "streams", "waits", "predicted", "measured", "as it serves", "activations", ""];
  const rows = candidates.map((c, i) => el("tr", i === chosen ? { class: "chosen" } : {}, el("th", { scope: "row" }, schedule(c)),
    ...[c.streams, c.synchronisations, time(c.predicted_us), time(c.measured_us || null), time(c.again_us || null),
      `${(c.peak_bytes / 2 ** 20).toFixed(2)} MiB`, i === chosen ? "chosen" : c.outcome].map((value) => el("td", {}, value))));
  return tableOf("What was measured for this batch size", heads, rows);
}

function tableOf(label, heads, rows) {
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, ...rows));
  return el("div", { class: "scroll", role: "region", "aria-label": label, tabindex: "0" }, table);
}

// The last traced replay
const stem = (name) => name.replace(/(_\d+)+$/, "");

function kindsOf(timeline) {
  const spent = new Map();
  for (const { name, start_us, end_us } of timeline) spent.set(stem(name), (spent.get(stem(name)) ?? 0) + end_us - start_us);
  const most = [...spent].sort((a, b) => b[1] - a[1]);
  return new Map(most.map(([name, us], i) => [name, { us, kind: Math.min(i, KINDS) }]));
}

function timeline({ at, replays, span_us, concurrency, stream_busy, timeline: intervals, omitted }) {
  const lanes = Object.keys(stream_busy).map(Number);
  const [begin, kinds] = [intervals[0].start_us, kindsOf(intervals)];
  const end = Math.max(...intervals.map((interval) => interval.end_us));
  const said = `${intervals.length} operators on ${streams(lanes.length)} in ${time(end - begin)}`;
  const drawing = svg("svg", { height: LANE * lanes.length + 24, role: "img", "aria-label": `The last traced replay: ${said}` });
  const draw = () => {
    const width = Math.max(drawing.clientWidth, 300);
    const x = (us) => GUTTER + ((width - GUTTER - 10) * (us - begin)) / (end - begin || 1);
    drawing.replaceChildren(...lanes.flatMap((lane, i) => laneOf(lane, i, stream_busy[lane], width)),
      ...axis(begin, end, x, LANE * lanes.length), ...intervals.flatMap((interval) => barOf(interval, lanes.indexOf(interval.stream), kinds, x)));
  };
  new ResizeObserver(draw).observe(drawing);
  const left = omitted ? `, without its last ${omitted}` : "";
  const named = [...kinds].slice(0, KINDS).map(([name, { us, kind }]) => [name, us, kind]);
  const others = [...kinds.values()].slice(KINDS).reduce((sum, { us }) => sum + us, 0);
  const legend = [...named, ...(others ? [["others", others, KINDS]] : [])].map(([name, us, kind]) => el("li", {},
    svg("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" }, svg("rect", { width: 1, height: 1, class: `k${kind}` })), `${name} ${time(us)}`));
  return el("figure", {},
    el("figcaption", {}, `The last of ${replays} replays traced at ${new Date(1e3 * at).toLocaleString()}: ${said}${left}. On average ${time(span_us)}, ${concurrency.toFixed(2)} streams busy while one was.`),
    drawing, el("ul", { class: "legend" }, ...legend));
}

const laneOf = (lane, i, busy, width) => [
  svg("rect", { x: GUTTER, y: LANE * i + 2, width: width - GUTTER - 10, height: LANE - 4, class: "lane" }),
  svg("text", { x: 0, y: LANE * i + 17 }, `stream ${lane}: ${share(busy)}`),
];

function barOf({ name, start_us, end_us }, row, kinds, x) {
  const [left, width] = [x(start_us), Math.max(x(end_us) - x(start_us), 1)];
  const bar = svg("rect", { x: left, y: LANE * row + 2, width, height: LANE - 4, rx: Math.min(2, width / 4), class: `k${kinds.get(stem(name)).kind}` },
    svg("title", {}, `${name}: ${time(end_us - start_us)}, from ${time(start_us)}`));
  const room = Math.floor((width - 6) / 7);
  return room >= name.length ? [bar, svg("text", { x: left + 3, y: LANE * row + 17, "pointer-events": "none" }, name)] : [bar];
}

function axis(begin, end, x, y) {
  const rough = (end - begin) / 6 || 1;
  const scale = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * scale).find((size) => size >= rough);
  const ticks = Array.from({ length: Math.floor((end - begin) / step) + 1 }, (_, i) => i * step);
  return ticks.flatMap((us) => [
    svg("line", { x1: x(begin + us), x2: x(begin + us), y1: 0, y2: y + 4 }),
    svg("text", { x: x(begin + us), y: y + 18, class: "axis", "text-anchor": "middle" }, us ? time(us) : "0"),
  ]);
}

function busyAtOnce({ busy_us, span_us }) {
  const parts = Object.entries(busy_us).map(([count, us]) => `${count === "0" ? "none" : count} for ${share(us / (span_us || 1))}`);
  return el("p", {}, `Streams busy at once, of the time: ${parts.join(", ")}.`);
}

function asTable({ timeline: intervals }) {
  const details = el("details", {}, el("summary", {}, "The replay as a table"));
  details.addEventListener("toggle", () => {
    const rows = intervals.map(({ name, stream, start_us, end_us }) => el("tr", {}, el("th", { scope: "row" }, name),
      ...[stream, time(start_us), time(end_us - start_us)].map((value) => el("td", {}, value))));
    details.append(tableOf("The last traced replay", ["operator", "stream", "from", "for"], rows));
  }, { once: true });
  return details;
}

// Again and again
let models = [];
let shown = "";

function say(text, lost) {
  if ($("summary").textContent !== text) $("summary").textContent = text; // it is read out when it changes
  $("summary").className = lost ? "lost" : "";
}

async function askForModels() {
  const text = await (await ask("/status.json")).text();
  if (text === shown) return;
  const [first, status] = [!shown, JSON.parse(text)];
  shown = text;
  models = status.models;
  $("version").textContent = status.version;
  showPlans(models);
  if (first && location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

async function poll() {
  try {
    await askForModels();
    const now = reading(await (await ask("/metrics")).text());
    const before = readings.at(-1)?.[1];
    if (before && [...before].some(([name, model]) => (now.get(name)?.batches ?? 0) < model.batches)) readings.length = 0; // it has started anew
    readings.push([performance.now(), now]);
    readings.splice(0, readings.length - WINDOW - 1);
    showModels(models);
    say(`${models.filter(({ state }) => state === "READY").length} of ${models.length} models ready`, false);
  } catch {
    say("The server does not answer: what is below is old.", true);
  }
  setTimeout(poll, POLL_MS);
}

poll();
