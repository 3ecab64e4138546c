"""The status page: what it tells, what it does not, and that it works in a browser."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client import generate_latest

from opara_protos.v1 import inference_pb2 as pb
from opara_server.engine.plan import BEYOND_BUDGET, Candidate
from opara_server.observe.metrics import Metrics
from opara_server.observe.page import status_page
from tests.browser import Browser, needs_browser, open_browser
from tests.rpc.served import MODEL, PATIENCE_S, Served, eventually, serve, write_model
from tests.serving.fakes import FakeCompiled, FakeDevice, make_plan

SECRET = "SECRET /srv/models/weights: KeyError"
CANDIDATES = (
    Candidate("aten", "sequential", False, 1, 0, 14.0, 15.0, 2 << 20),
    Candidate("aten", "opara", False, 2, 1, 9.0, 10.0, 1024, again_us=10.5),
    Candidate("aten", "nimble", False, 3, 2, 8.0, 9.0, 1024, rejected=SECRET),
    Candidate("aten", "heft", False, 3, 2, 12.0, 0.0, 1024, rejected=BEYOND_BUDGET),
)


def compiled(name: str) -> FakeCompiled:
    made = FakeCompiled(name, device=FakeDevice())
    buckets = tuple(replace(bucket, candidates=CANDIDATES) for bucket in made.plan.buckets)
    made.plan = replace(made.plan, buckets=buckets, fallback_reason=SECRET)
    return made


@pytest.fixture
async def shown(tmp_path: Path) -> AsyncIterator[Served]:
    models = write_model(tmp_path / "models")
    write_model(models, "broken", f'source = "python:nowhere:at_all"\nspeed = "{SECRET}"')
    async with serve(models, lambda name, *_: compiled(name), admin=True) as served:
        yield served


async def get(served: Served, path: str) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        try:
            with urlopen(f"http://{served.app.metrics_address}{path}", timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


async def test_the_page_and_what_it_asks_for(shown: Served) -> None:
    assert await get(shown, "/") == (200, status_page().body.decode())
    status = json.loads((await get(shown, "/status.json"))[1])
    broken, double = status["models"]
    assert broken == {"name": "broken", "state": "FAILED", "reason": "its name or its model.toml cannot be used"}
    assert (double["name"], double["state"], double["device"], double["fallback"]) == (MODEL, "READY", "cpu", True)
    assert [bucket["batch_size"] for bucket in double["buckets"]] == [1, 4, 8]
    assert (double["buckets"][0]["measured_us"], double["buckets"][0]["sequential_us"]) == (10.0, 15.0)
    bucket = json.loads((await get(shown, f"/bucket.json?model={MODEL}&batch_size=4"))[1])
    assert bucket["chosen"] == 1
    assert [candidate["outcome"] for candidate in bucket["candidates"]] == ["", "", "refused", "not measured"]
    assert (bucket["sample"]["span_us"], bucket["sample"]["busy_us"]) == (100.0, {"0": 0.0, "1": 50.0, "2": 50.0})
    assert [interval["name"] for interval in bucket["sample"]["timeline"]] == ["first", "second"]


async def test_what_is_not_to_be_told_is_not(shown: Served) -> None:
    paths = ["/", "/status.json", *(f"/bucket.json?model={MODEL}&batch_size={size}" for size in (1, 4, 8)), "/metrics"]
    for path in paths:
        _, text = await get(shown, path)
        assert not re.search(r"SECRET|/srv|KeyError|python:|at_all", text), path


@pytest.mark.parametrize(
    "query", ["", "?model=double", "?batch_size=1", "?model=nobody&batch_size=1", "?model=double&batch_size=3",
              "?model=double&batch_size=x", "?model=broken&batch_size=1", "?model=double&batch_size=" + "9" * 5000]
)  # fmt: skip
async def test_what_is_not_there_is_not_found(shown: Served, query: str) -> None:
    assert await get(shown, f"/bucket.json{query}") == (404, "Not Found\n")


def test_the_page_needs_nothing_from_elsewhere() -> None:
    content = status_page()
    text = content.body.decode()
    assert not re.search(r"""(?:src|href|url\(|import)\s*=?\s*["']?(?:https?:)?//""", text)
    assert "innerHTML" not in text
    policy = dict(content.headers)["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(content.body) < 64 * 1024


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


async def looked_at(browser: Browser, *expressions: str) -> list[Any]:
    """Once each of the expressions is true, off the loop that serves."""
    return [await asyncio.to_thread(browser.wait_for, expression) for expression in expressions]


TEXT = "document.body.innerText"
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const light = (colour) => {
  canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (colour !== "rgba(0, 0, 0, 0)") return colour;
  }
};
const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
const all = (selector) => [...document.querySelectorAll(selector)];
const texts = all("h1,h1 small,h2,h3,th,td,a,summary,figcaption,p,li").filter((node) => node.innerText);
const ink = light(getComputedStyle(document.querySelector("svg text")).fill);
const bars = all("figure svg rect").map((bar) => ratio(ink, light(getComputedStyle(bar).fill)));
return Math.min(...bars, ...texts.map((n) => ratio(light(getComputedStyle(n).color), light(ground(n)))));
"""
CUT_OFF = """
return [...document.querySelectorAll("h1,h2,h3,h4,p,figcaption,summary,caption,li,a")]
  .filter((node) => node.innerText && node.getBoundingClientRect().right > document.documentElement.clientWidth)
  .map((node) => node.innerText);
"""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_shows_models_rates_plans_and_the_last_replay(shown: Served, browser: Browser, scheme: str) -> None:
    over = asyncio.Event()

    async def load() -> None:
        while not over.is_set():
            await shown.infer(1.0)
            await asyncio.sleep(0.01)

    loading = asyncio.create_task(load())
    await asyncio.to_thread(browser.wear, scheme)
    await asyncio.to_thread(browser.open, f"http://{shown.app.metrics_address}/#double%2F4")
    await looked_at(
        browser,
        f"{TEXT}.includes('1 of 2 models ready')",
        f"{TEXT}.includes('its name or its model.toml cannot be used')",
        "Number(document.querySelector('#models tbody tr:nth-child(2)').cells[2].innerText) > 0",
        "document.querySelector('#models tbody tr:nth-child(2)').cells[4].innerText.includes('s')",
        "document.querySelectorAll('details[open] figure > svg rect.k0').length === 1",
        f"{TEXT}.includes('stream 1: 50 %')",
        f"{TEXT}.includes('none for 0 %, 1 for 50 %, 2 for 50 %')",
        "document.querySelector('tr.chosen').innerText.includes('chosen')",
    )
    over.set()
    await loading
    assert await asyncio.to_thread(browser.run, CONTRAST) >= 4.5  # WCAG 2.2, AA
    await asyncio.to_thread(browser.narrow, 360)
    assert await asyncio.to_thread(browser.run, CUT_OFF) == []
    await asyncio.to_thread(browser.narrow, 0)
    assert await asyncio.to_thread(browser.log) == []


@needs_browser
async def test_its_numbers_are_those_of_the_metrics(shown: Served, browser: Browser) -> None:
    """Of what came between two readings: 200 requests in ten seconds, ten of them failed."""
    metrics, name, read = Metrics(), 'a"b\\', "reading(arguments[{0}]).get(arguments[2])"
    metrics.add_model(name)
    metrics.show(make_plan(name, (4,)))
    model, pages = metrics.model(make_plan(name, (4,))), []
    metrics.watch_queue(name, lambda: 7)
    for slow, fast, failed, batches in ((50, 0, 3, 5), (10, 180, 10, 60)):
        for seconds, times in ((0.2, slow), (0.004, fast)):
            for _ in range(times):
                metrics.request(name, "OK", seconds)
        for _ in range(failed):
            metrics.request(name, "UNAVAILABLE", 0.0)
        for batch in range(batches):
            model.ran(4, 2 + batch % 2, 1e-5, 1e-3, 1e-5)
        pages.append(generate_latest(metrics.registry).decode())
    await asyncio.to_thread(browser.open, f"http://{shown.app.metrics_address}/")
    script = f"return rates({read.format(0)}, {read.format(1)}, 10)"
    seen = await asyncio.to_thread(browser.run, script, *pages, name)
    assert seen == pytest.approx(
        {
            "requests": 20.0,
            "errors": 1.0,
            "p50": 1e6 * (0.0025 + 0.0025 * 95 / 180),  # as histogram_quantile: within 2.5 to 5 ms
            "p99": 1e6 * (0.1 + 0.15 * (188.1 - 180) / 10),
            "rows": 2.5,
            "padding": 1.5 / 4,
            "waiting": 7,
        }
    )
    said = await asyncio.to_thread(browser.run, "return [null, 12.345, 4567, 2e6].map(time)")
    assert said == ["–", "12.3 µs", "4.57 ms", "2.00 s"]


@needs_browser
async def test_it_goes_on_by_itself(shown: Served, browser: Browser) -> None:
    """A trace is shown when it was made; a server that is gone is noticed."""
    await asyncio.to_thread(browser.open, f"http://{shown.app.metrics_address}/")
    await looked_at(browser, f"{TEXT}.includes('models ready')")
    await asyncio.to_thread(browser.run, "document.querySelector('details summary').click()")
    await looked_at(browser, "document.querySelector('details[open] figcaption')", "location.hash === '#double%2F1'")
    drawn = "document.querySelector('details[open] figcaption').innerText"
    before = await asyncio.to_thread(browser.run, f"return {drawn}")
    await asyncio.to_thread(browser.run, "document.querySelector('details details summary').click()")
    await looked_at(browser, "document.querySelectorAll('details details tbody tr').length === 2")

    async def shows_a_new_one() -> bool:
        await shown.stub.ProfileModel(pb.ProfileModelRequest(model=MODEL, batch_size=1), timeout=PATIENCE_S)
        return bool(await asyncio.to_thread(browser.run, f"return {drawn} !== {json.dumps(before)}"))

    await asyncio.to_thread(browser.run, "document.querySelector('details summary').focus()")
    await eventually(shows_a_new_one)
    await looked_at(browser, "document.activeElement === document.querySelector('details summary')")
    shown.app.metrics.stop()
    await looked_at(browser, f"{TEXT}.includes('does not answer')")
    # Refused, or reset where it had asked just then.
    assert all("net::ERR_CONNECTION_" in line for line in await asyncio.to_thread(browser.log))
