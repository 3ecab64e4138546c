"""Serves the example and sends it real images: ``python -m examples.demo``. Exits 1 where the answers are not good."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from examples.dataset import Digits, training_and_held_out
from examples.serving import ServerError, running_server
from opara_client import Bucket, Candidate, ModelInfo, OparaClient, OparaError

MODEL = "digits"
REQUIRED_ACCURACY = 0.97
CALLERS = 8
BATCHES = (3, 8, 20, 32, 50)  # rows per request: some fill a bucket, some leave padding, one needs more than one replay
SHOWN_METRICS = ("opara_stream_concurrency{", "opara_stream_busy_ratio{", "opara_rows_total{")


@dataclass(frozen=True)
class Answers:
    """``digits``: int64 [n], in the order of the images; ``latency_s``: of each request; ``elapsed_s``: of all."""

    digits: NDArray[np.int64]
    latency_s: NDArray[np.float64]
    elapsed_s: float


def ask(client: OparaClient, images: NDArray[np.float32]) -> tuple[NDArray[np.int64], float]:
    """One request: the digit of each image, and the seconds it took."""
    start = time.perf_counter()
    result = client.infer(MODEL, {"image": images})
    seconds = time.perf_counter() - start
    if not np.allclose(result["probabilities"].sum(axis=1), 1.0, atol=1e-4):
        raise ValueError("the server's probabilities do not add up to 1")
    return result["digit"].astype(np.int64), seconds


def ask_all(client: OparaClient, requests: Sequence[NDArray[np.float32]], title: str, console: Console) -> Answers:
    """Send every request, CALLERS at a time."""
    start = time.perf_counter()
    shown = Progress(console=console, transient=True, disable=not console.is_terminal)
    with shown as progress, ThreadPoolExecutor(CALLERS) as callers:
        answers = callers.map(lambda images: ask(client, images), requests)
        seen = list(progress.track(answers, total=len(requests), description=title))
    elapsed = time.perf_counter() - start
    return Answers(np.concatenate([d for d, _ in seen]), np.array([s for _, s in seen]), elapsed)


def in_batches(data: Digits) -> list[NDArray[np.float32]]:
    """The images in requests of the sizes BATCHES, over and over."""
    cuts = np.cumsum(np.resize(BATCHES, len(data)))
    return np.split(data.images, cuts[cuts < len(data)])


def measured_opara(bucket: Bucket) -> Candidate | None:
    """The fastest schedule of the paper's policy, on ATen operators as in the paper; a refused one only where there is
    no other."""
    return min(
        (c for c in bucket.candidates if (c.lowering, c.policy) == ("aten", "opara")),
        key=lambda candidate: (bool(candidate.rejected), candidate.measured_us),
        default=None,
    )


def verdict(bucket: Bucket, opara: Candidate) -> str:
    """Why the paper's policy does not run in this bucket."""
    if opara.rejected:
        return f"refused: {opara.rejected}" if opara.measured_us else opara.rejected
    if opara.measured_us > bucket.sequential_us:
        return "slower: not chosen"
    if bucket.policy == "sequential":
        return "hardly faster: not chosen"
    return "faster, but another was chosen"


def plan_table(model: ModelInfo) -> Table:
    """Per bucket the policy that runs and, under it, what ``opara`` measured where that is another."""
    table = Table(box=None)
    table.add_column("bucket", justify="right")
    table.add_column("policy", no_wrap=True)
    for heading in ("streams", "µs", "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for bucket in model.buckets:
        figures = _figures(bucket, bucket.streams, bucket.measured_us)
        table.add_row(str(bucket.batch_size), bucket.policy, *figures, "runs", style="bold")
        opara = measured_opara(bucket)
        if opara is None:
            table.add_row("", "opara", "", "", "", "not measured")
        elif (bucket.lowering, bucket.policy) != (opara.lowering, opara.policy):
            table.add_row("", opara.policy, *_figures(bucket, opara.streams, opara.measured_us), verdict(bucket, opara))
    return table


def _figures(bucket: Bucket, streams: int, measured_us: float) -> tuple[str, str, str]:
    measured = measured_us > 0  # what cannot be captured has no time
    speedup = f"{bucket.sequential_us / measured_us:.2f} x" if measured else ""
    return str(streams), f"{measured_us:.0f}" if measured else "", speedup


def metric_lines(url: str) -> list[str]:
    """The first line of each metric of SHOWN_METRICS."""
    with urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return [line for start in SHOWN_METRICS for line in [x for x in lines if x.startswith(start)][:1]]


def report(answers: Answers, accuracy: float, console: Console) -> None:
    p50, p99 = np.percentile(answers.latency_s * 1e3, [50, 99])
    rate = len(answers.latency_s) / answers.elapsed_s
    console.print(
        f"accuracy    {accuracy:.2%} of {len(answers.digits)} held-out images (wanted: {REQUIRED_ACCURACY:.0%})"
    )
    console.print(f"latency     p50 {p50:.2f} ms, p99 {p99:.2f} ms with {CALLERS} requests in flight")
    console.print(f"throughput  {rate:.0f} requests/s, one image each")


def demo(console: Console) -> bool:
    """Whether the served model is as good as it should be and answers batches as it answers single images."""
    _, held_out = training_and_held_out()
    console.print("starting a server: it exports, measures, captures and verifies the model")
    console.print("half of the processors are left to the client, unless OMP_NUM_THREADS is set")
    with running_server() as server:
        console.print(f"serving     gRPC on {server.grpc}")
        with OparaClient(server.grpc) as client:
            model = client.model(MODEL)
            single = ask_all(client, np.split(held_out.images, len(held_out)), "one image per request", console)
            batched = ask_all(client, in_batches(held_out), "some images per request", console)
        accuracy = float((single.digits == held_out.labels).mean())
        same = bool((single.digits == batched.digits).all())
        report(single, accuracy, console)
        console.print(
            f"batches     of {min(BATCHES)} to {max(BATCHES)} images: {'the same' if same else 'OTHER'} answers"
        )
        console.print(f"device      {model.device} ({model.device_name})")
        console.print("plan        measured in turns; speed-ups are over the sequential graph")
        console.print(plan_table(model))
        if model.fallback_reason:
            console.print(f"one sequential graph, because {model.fallback_reason}")
        url = f"http://{server.metrics}/metrics"
        console.print(f"metrics     {url}")
        rows = len(single.digits) + len(batched.digits)
        console.print(f"            after {rows} rows: each image alone, and again in a batch")
        for line in metric_lines(url):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    console.print("the server has stopped cleanly")
    return accuracy >= REQUIRED_ACCURACY and same


def main() -> int:
    console = Console()
    try:
        return 0 if demo(console) else 1
    except (ServerError, OparaError, OSError, ValueError) as error:
        console.print(f"the demo failed: {error}", style="red", markup=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())
