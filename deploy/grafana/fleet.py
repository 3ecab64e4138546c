"""By pod: who is there, who gets how much, who is slow, what each takes of its machine."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.panels import OURS, Query, Row, assembled, bars, choice, figure, graph, happened, quantile, rate

WHERE = f'{OURS}, pod=~"$pod"'
POD = "{{pod}}"
PER_POD = rate("opara_requests_total", WHERE, "pod")
IN_FLIGHT = " - ".join(f"sum by (pod) (opara_{name}_total{{{WHERE}}})" for name in ("received", "requests"))


def ours(process_metric: str) -> str:
    """Of the processes that are servers of ours: others export these names too."""
    return f"sum by (pod) ({process_metric} and on (job, instance) opara_build_info)"


def fleet() -> Dashboard:
    head = Row(
        "",
        (
            figure("Pods that answer", "none", f"count(opara_build_info{{{WHERE}}})"),
            figure("Models that do not serve", "none", f"count(opara_model_ready{{{WHERE}}} == 0) or vector(0)"),
            figure(
                "Busiest pod over the mean",
                "suffix:×",
                f"max({PER_POD}) / avg({PER_POD})",
                "1: requests are spread evenly.",
            ),
            figure(
                "Versions",
                "none",
                f"count(count by (version, torch, grpc) (opara_build_info{{{WHERE}}}))",
                "1, but while one is rolled out.",
            ),
        ),
        height=4,
        columns=4,
    )
    requests = Row(
        "Requests",
        (
            graph("Requests", "reqps", Query(PER_POD, POD)),
            graph(
                "Not OK",
                "reqps",
                Query(happened("opara_requests_total", f'{WHERE}, code!="OK"', "pod, code"), "{{pod}} {{code}}"),
            ),
            graph("Latency p99", "s", Query(quantile(0.99, "opara_request_seconds", WHERE, "pod"), POD)),
            graph("Rows", "ops", Query(rate("opara_rows_total", WHERE, "pod"), POD)),
            graph("In flight", "none", Query(IN_FLIGHT, POD), text="Requests that have come and are not answered yet."),
            graph("Rows that wait", "none", Query(f"sum by (pod) (opara_queue_depth_rows{{{WHERE}}})", POD)),
            graph("Wait in the queue, p99", "s", Query(quantile(0.99, "opara_queue_seconds", WHERE, "pod"), POD)),
        ),
    )
    processes = Row(
        "Processes",
        (
            graph(
                "Processors",
                "none",
                Query(ours(f"rate(process_cpu_seconds_total{{{WHERE}}}[$__rate_interval])"), POD),
                text="With --workers: of the engine's process.",
            ),
            graph("Memory", "bytes", Query(ours(f"process_resident_memory_bytes{{{WHERE}}}"), POD)),
            graph("File descriptors", "none", Query(ours(f"process_open_fds{{{WHERE}}}"), POD)),
            graph(
                "Workers replaced",
                "none",
                Query(
                    f"sum by (pod, cause) (increase(opara_workers_replaced_total{{{WHERE}}}[$__rate_interval]))",
                    "{{pod}} {{cause}}",
                ),
                text="With --workers: ended, silent when they were asked whether they live, or broken.",
            ),
            bars("Age", "s", Query(ours(f"(time() - process_start_time_seconds{{{WHERE}}})"), POD)),
            bars("Models that serve", "none", Query(f"sum by (pod) (opara_model_ready{{{WHERE}}})", POD)),
            bars(
                "What runs",
                "none",
                Query(f"count by (version, torch) (opara_build_info{{{WHERE}}})", "{{version}}, torch {{torch}}"),
            ),
        ),
    )
    pod = choice("pod", "Pod", f"opara_build_info{{{OURS}}}")
    return assembled("opara-fleet", "opara-serve: pods", pod, [head, requests, processes])
