"""The client's capacity model beside the server, whose rules it repeats and whose metrics it reads."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from opara_client.capacity_figures import from_metrics
from opara_client.capacity_model import QUEUE_PER_ROW, ReplicaModel
from opara_server.engine.plan import BucketPlan, Plan
from opara_server.engine.spec import TensorSpec
from opara_server.model_config import InputConfig, ModelConfig
from opara_server.observe.metrics import Metrics
from opara_server.observe.model_metrics import ModelMetrics
from opara_server.serving.batcher import Batcher
from opara_server.serving.limits import Limits
from opara_server.serving.rows import Rows

INPUT = TensorSpec("x", "float32", (1,))
BATCH_TIMES = st.dictionaries(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]), st.integers(1, 40), min_size=1, max_size=5)


def metrics(buckets: tuple[int, ...]) -> tuple[Metrics, ModelMetrics]:
    plans = (BucketPlan(size, "opara", False, "aten", 3, 2, 2, 10.0, 2, 1, 10.0, 15.0, 1024) for size in buckets)
    made = Metrics()
    return made, made.model(Plan("m", "cpu", "none", tuple(plans)))


def no_answer(_outcome: object) -> None:
    """Nothing is run."""


@given(BATCH_TIMES, st.integers(1, 16), st.integers(1, 4))
def test_the_next_batch_is_the_servers(times: dict[int, int], waiting: int, rows: int) -> None:
    model = ReplicaModel({size: milliseconds / 1e3 for size, milliseconds in times.items()}, rows=min(rows, max(times)))
    batcher = Batcher((INPUT,), Limits(model.buckets, model.buckets[-1], 10**6), metrics(model.buckets)[1], no_wake)
    for size, seconds in model.batch_s.items():
        batcher.ran(size, seconds)
    for _ in range(waiting):
        batcher.submit(Rows((bytes(4 * model.rows),), model.rows), None, no_answer)
    batch = batcher.take()
    assert batch is not None
    assume(all(piece.count == model.rows for piece in batch.pieces))  # parts of requests are beyond the model
    taken, seconds = model.batches[min(waiting, len(model.batches)) - 1]
    assert (len(batch.pieces), model.batch_s[batch.bucket]) == (taken, seconds)


def no_wake() -> None:
    """Nobody sleeps."""


def test_so_many_rows_may_wait() -> None:
    config = ModelConfig(
        source="python:m:f", inputs=(InputConfig(name="x", dtype="float32", shape=(1,)),), batch_sizes=(1, 8)
    )
    assert config.max_queue_rows == QUEUE_PER_ROW * 8
    assert ReplicaModel({1: 1.0, 8: 2.0}).queue_requests == QUEUE_PER_ROW * 8


def test_a_servers_metrics_say_how_long_its_batches_take() -> None:
    made, counted = metrics((1, 8))
    made.add_model("m")
    before = generate_latest(made.registry).decode()
    for _ in range(3):
        counted.ran(1, 1, 0.001, 0.010, 0.001)
        counted.ran(8, 6, 0.003, 0.020, 0.001)
    for _ in range(21):
        made.request("m", "OK", 0.1)
    made.request("m", "INVALID_ARGUMENT", 0.1)
    after = generate_latest(made.registry).decode()
    model = from_metrics([after], "m")
    assert model.batch_s == pytest.approx({1: 0.013, 8: 0.023})
    assert (model.rows, model.front_s) == (1, 0.0)
    assert from_metrics([before, after], "m").batch_s == pytest.approx(model.batch_s)
