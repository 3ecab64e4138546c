"""What the queue costs: µs of one thread per request for submit, take and answer, without a transport or a device.

``python -m bench.queueing`` prints the median of many short runs per case, of requests of one row of 64 bytes. Needs
no GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Annotated

import typer

from opara_server.engine.plan import BucketPlan, Plan
from opara_server.engine.spec import TensorSpec
from opara_server.observe.metrics import Metrics
from opara_server.observe.model_metrics import ModelMetrics
from opara_server.serving.batcher import Batcher
from opara_server.serving.limits import Limits
from opara_server.serving.rows import Rows

BUCKETS = (1, 8, 32)
INPUT = TensorSpec("x", "float32", (16,))
ROW = bytes(INPUT.row_bytes)
FAR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    requests: int  # per batch
    deadline: bool


CASES = (Case("batches of 32", 32, False), Case("batches of 32, deadlines", 32, True), Case("batches of 1", 1, False))


def metrics() -> ModelMetrics:
    buckets = (BucketPlan(size, "opara", False, "aten", 3, 2, 2, 10.0, 2, 1, 10.0, 15.0, 1024) for size in BUCKETS)
    return Metrics().model(Plan("m", "cpu", "none", tuple(buckets)))


def measure(case: Case, batches: int) -> float:
    """µs per request: submitted, batched, run by nobody, answered."""
    model = metrics()
    batcher = Batcher((INPUT,), Limits(BUCKETS, 32, 4096), model, wake=lambda: None)
    for bucket in BUCKETS:
        batcher.ran(bucket, 1e-4 * bucket**0.5)
    answers: list[object] = []
    done: Callable[[object], None] = answers.append
    parts = [(ROW,)] * case.requests
    begin = time.perf_counter()
    for _ in range(batches):
        deadline = time.monotonic() + FAR_S if case.deadline else None
        for _ in range(case.requests):
            batcher.submit(Rows((ROW,), 1), deadline, done)
        batch = batcher.take()
        assert batch is not None
        batcher.ran(batch.bucket, 1.0)
        model.ran(batch.bucket, batch.rows, 1e-5, 1e-4, 1e-5)
        batcher.answer(batch, parts)
    seconds = time.perf_counter() - begin
    assert len(answers) == batches * case.requests
    return 1e6 * seconds / (batches * case.requests)


def main(
    requests: Annotated[int, typer.Option(help="Requests per run.")] = 20_000,
    repeats: Annotated[int, typer.Option(help="Runs per case, the cases in turns.")] = 15,
) -> None:
    """Print the table."""
    runs = [[measure(case, requests // case.requests) for case in CASES] for _ in range(repeats)]
    for case, times in zip(CASES, zip(*runs, strict=True), strict=True):
        print(f"{case.name:26} {median(times):6.2f} µs per request")


if __name__ == "__main__":
    typer.run(main)
