"""By GPU and captured graph: multiprocessors, memory, power; streams, replay times and copies."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.panels import OURS, Query, Row, assembled, bars, choice, graph, mean, quantile, rate

WHERE = f'{OURS}, model=~"$model"'
GPU, GRAPH = "{{pod}} {{gpu_uuid}}", "{{model}} {{bucket}}"


def gpu() -> Dashboard:
    device = Row(
        "GPUs",
        (
            graph(
                "Multiprocessors",
                "percentunit",
                Query(f"opara_gpu_sm_utilization_ratio{{{OURS}}}", f"{GPU} with work"),
                Query(f"opara_gpu_sm_occupancy_ratio{{{OURS}}}", f"{GPU} occupancy"),
                text="From Hopper on. Occupancy: resident warps of those possible.",
            ),
            graph(
                "Any kernel runs",
                "percentunit",
                Query(f"nv_gpu_utilization{{{OURS}}}", GPU),
                text="What nvidia-smi calls utilisation: it says little of how much of the GPU is in use.",
            ),
            graph(
                "Memory",
                "bytes",
                Query(f"nv_gpu_memory_used_bytes{{{OURS}}}", f"{GPU} used"),
                Query(f"nv_gpu_memory_total_bytes{{{OURS}}}", f"{GPU} total"),
            ),
            graph("Power", "watt", Query(f"nv_gpu_power_usage{{{OURS}}}", GPU)),
        ),
        columns=4,
    )
    graphs = Row(
        "Captured graphs, by batch size",
        (
            graph("Replay p50", "s", Query(quantile(0.5, "opara_replay_seconds", WHERE, "model, bucket"), GRAPH)),
            graph("Replay p99", "s", Query(quantile(0.99, "opara_replay_seconds", WHERE, "model, bucket"), GRAPH)),
            graph("Replays", "ops", Query(rate("opara_replays_total", WHERE, "model, bucket"), GRAPH)),
            graph(
                "Share of the time in which graphs run",
                "percentunit",
                Query(rate("opara_replay_seconds_sum", WHERE, "pod, model"), "{{pod}} {{model}}"),
                stacked=True,
                text="Of each pod's device. One graph runs at a time.",
            ),
            graph(
                "Copies (mean)",
                "s",
                Query(mean("opara_copy_in_seconds", WHERE, "model"), "{{model}} in"),
                Query(mean("opara_copy_out_seconds", WHERE, "model"), "{{model}} out"),
            ),
            bars(
                "Memory of activations", "bytes", Query(f"max by (model, bucket) (opara_graph_bytes{{{WHERE}}})", GRAPH)
            ),
        ),
    )
    streams = Row(
        "Streams, measured on traced replays",
        (
            bars(
                "Busy share of each stream",
                "percentunit",
                Query(
                    f"avg by (model, bucket, stream) (opara_stream_busy_ratio{{{WHERE}}})",
                    f"{GRAPH} stream {{{{stream}}}}",
                ),
            ),
            bars(
                "Streams busy at once",
                "none",
                Query(f"avg by (model, bucket) (opara_stream_concurrency{{{WHERE}}})", GRAPH),
                "Averaged over the time in which one is busy.",
            ),
            bars(
                "Time with so many streams busy, per replay",
                "s",
                Query(
                    f"avg by (model, bucket, busy) (opara_streams_busy_seconds{{{WHERE}}})",
                    f"{GRAPH}: {{{{busy}}}} busy",
                ),
            ),
            bars(
                "Traced so long ago",
                "s",
                Query(f"min by (model, bucket) (time() - opara_stream_sample_timestamp_seconds{{{WHERE}}})", GRAPH),
                "At load, on demand, and regularly with --sample-streams-every.",
            ),
            graph(
                "Cost of tracing",
                "percentunit",
                Query(rate("opara_stream_sampling_seconds_total", WHERE, "pod, model"), "{{pod}} {{model}}"),
                text="Of the time: requests wait meanwhile.",
            ),
        ),
        height=10,
    )
    model = choice("model", "Model", f"opara_model_ready{{{OURS}}}")
    return assembled("opara-gpu", "opara-serve: GPUs and streams", model, [device, graphs, streams])
