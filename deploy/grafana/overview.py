"""By model: rate, errors, latency, queue, batches and padding, what the plan brings."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.panels import (
    OURS,
    Panel,
    Query,
    Row,
    assembled,
    bars,
    choice,
    figure,
    graph,
    happened,
    mean,
    quantile,
    rate,
    ratio,
)

WHERE = f'{OURS}, model=~"$model"'
NOT_OK = f'{WHERE}, code!="OK"'
EXECUTED, PADDED = rate("opara_rows_total", WHERE, "model"), rate("opara_padded_rows_total", WHERE, "model")
PARTS = ("queue", "copy_in", "replay", "copy_out")


def overview() -> Dashboard:
    every = f"sum(rate(opara_requests_total{{{WHERE}}}[$__rate_interval]))"
    failed = f"(sum(rate(opara_requests_total{{{NOT_OK}}}[$__rate_interval])) or vector(0))"
    head = Row(
        "",
        (
            figure("Models ready", "none", f"sum(opara_model_ready{{{WHERE}}})", "Summed over pods."),
            figure("Requests per second", "reqps", every),
            figure("Not OK", "percentunit", ratio(failed, every), "Mistakes of clients, too."),
            figure("Latency p50", "s", quantile(0.5, "opara_request_seconds", WHERE)),
            figure("Latency p99", "s", quantile(0.99, "opara_request_seconds", WHERE)),
            figure("Given up", "none", f"sum(opara_schedule_fallbacks{{{WHERE}}})", "Batch sizes on one stream."),
        ),
        height=4,
        columns=6,
    )
    requests = Row(
        "Requests",
        (
            graph("Requests", "reqps", Query(rate("opara_requests_total", WHERE, "model"), "{{model}}")),
            graph(
                "Not OK, by code",
                "reqps",
                Query(happened("opara_requests_total", NOT_OK, "model, code"), "{{model}} {{code}}"),
            ),
            graph(
                "Refused, by reason",
                "reqps",
                Query(happened("opara_rejected_total", WHERE, "model, reason"), "{{model}} {{reason}}"),
            ),
            *(_latency(share, name) for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))),
        ),
    )
    batching = Row(
        "Queue and batches",
        (
            graph(
                "Where the time goes (mean)",
                "s",
                *(Query(mean(f"opara_{part}_seconds", WHERE, "model"), f"{{{{model}}}} {part}") for part in PARTS),
                text="Queue: per request; the others per batch.",
            ),
            graph(
                "Wait in the queue, p99", "s", Query(quantile(0.99, "opara_queue_seconds", WHERE, "model"), "{{model}}")
            ),
            graph("Rows that wait", "none", Query(f"sum by (model) (opara_queue_depth_rows{{{WHERE}}})", "{{model}}")),
            graph(
                "Rows per batch",
                "none",
                Query(ratio(EXECUTED, rate("opara_batches_total", WHERE, "model")), "{{model}}"),
            ),
            graph(
                "Padding",
                "percentunit",
                Query(f"{PADDED} / ({EXECUTED} + {PADDED})", "{{model}}"),
                text="Of the rows that are executed.",
            ),
            graph(
                "Replays by batch size and policy",
                "ops",
                Query(rate("opara_replays_total", WHERE, "model, bucket, policy"), "{{model}} {{bucket}} {{policy}}"),
            ),
        ),
    )
    plans = Row(
        "Plans",
        (
            bars(
                "Speed-up of the plan over one stream",
                "suffix:×",
                Query(f"max by (model, bucket) (opara_plan_speedup{{{WHERE}}})", "{{model}} {{bucket}}"),
                "Measured when the plan was made; by batch size.",
            ),
            bars(
                "Memory of activations",
                "bytes",
                Query(f"max by (model, bucket) (opara_graph_bytes{{{WHERE}}})", "{{model}} {{bucket}}"),
            ),
        ),
        columns=2,
    )
    model = choice("model", "Model", f"opara_model_ready{{{OURS}}}")
    return assembled("opara-overview", "opara-serve: models", model, [head, requests, batching, plans])


def _latency(share: float, name: str) -> Panel:
    expr = quantile(share, "opara_request_seconds", WHERE, "model")
    return graph(f"Latency {name}", "s", Query(expr, "{{model}}", exemplars=share > 0.9))
