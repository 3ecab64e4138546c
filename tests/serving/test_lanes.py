"""Bytes in, bytes out: nothing of a neighbour or of the padding in anybody's answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opara_server.engine.spec import TensorSpec
from opara_server.observe.metrics import Metrics
from opara_server.serving.batcher import Batch, Batcher, Piece, Rows, Ticket
from opara_server.serving.lanes import Lane, Lanes
from opara_server.serving.limits import Limits
from tests.serving.fakes import Answer, FakeCompiled, FakeDevice, FakeGraph, Y, rows_of


@pytest.fixture(params=["in place", "through buffers"])
def device(request: pytest.FixtureRequest) -> FakeDevice:
    device = FakeDevice()
    device.maps = request.param == "in place"
    return device


def run(model: FakeCompiled, bucket: int, *requests: Rows) -> list[tuple[bytes, ...]]:
    """One batch of whole requests through a new lane."""
    return run_in(Lanes(model).take(), model, bucket, *requests)


def run_in(lane: Lane, model: FakeCompiled, bucket: int, *requests: Rows) -> list[tuple[bytes, ...]]:
    with model.device.bind():
        parts, timing = lane.run(batch_of(model, bucket, *requests))
    assert min(timing.copy_in_s, timing.replay_s, timing.copy_out_s) >= 0.0
    return [tuple(map(bytes, part)) for part in parts]


def batch_of(model: FakeCompiled, bucket: int, *requests: Rows) -> Batch:
    batcher = Batcher(model.inputs, Limits((8,), 8, 8), Metrics().model(model.plan), wake=lambda: None)
    pieces = tuple(Piece(Ticket(batcher, rows, None, Answer(), 0.0), 0, rows.count) for rows in requests)
    return Batch(pieces, sum(r.count for r in requests), bucket)


def floats(part: tuple[bytes, ...]) -> np.ndarray:
    return np.frombuffer(part[0], dtype=np.float32).reshape(-1, 2)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poisoned_neighbours_stay_among_themselves(poison: float, device: FakeDevice) -> None:
    parts = run(FakeCompiled(device=device), 4, rows_of([poison]), rows_of([1.0, 2.0]), rows_of([poison]))
    np.testing.assert_array_equal(floats(parts[1]), [[2, 2], [4, 4]])
    np.testing.assert_array_equal(floats(parts[0]), [[poison, poison]])


def test_padding_is_zero_whatever_was_there_before(device: FakeDevice) -> None:
    model = FakeCompiled(device=device)
    lane = Lanes(model).take()
    run_in(lane, model, 4, rows_of([np.nan] * 4))
    parts = run_in(lane, model, 4, rows_of([3.0]))
    np.testing.assert_array_equal(floats(parts[0]), [[6, 6]])
    assert not model.graphs[4].inputs[0][1:].any()


def test_padding_is_in_the_range_of_its_input(device: FakeDevice) -> None:
    ids = TensorSpec("ids", "int64", (2,), 5, 9)
    model = FakeCompiled(device=device, inputs=(ids,), forward=lambda x: (x.float(),))
    run(model, 4, Rows((np.array([[7, 8]], np.int64).tobytes(),), 1))
    np.testing.assert_array_equal(model.graphs[4].inputs[0], [[7, 8], [5, 5], [5, 5], [5, 5]])


def test_the_device_is_synchronised_after_an_error_too(device: FakeDevice) -> None:
    model = FakeCompiled(device=device)
    model.device.error = RuntimeError("lost")
    with pytest.raises(RuntimeError, match="lost"):
        run(model, 4, rows_of(3))
    assert model.device.log[-1] == "synchronize"


def test_static_tensors_may_be_channels_last(device: FakeDevice) -> None:
    spec = TensorSpec("image", "float32", (3, 4, 5))
    model = FakeCompiled(device=device, inputs=(spec,), outputs=(spec,))
    graph = model.graphs[4]
    graph.inputs = (graph.inputs[0].to(memory_format=torch.channels_last),)
    graph.outputs = (graph.outputs[0].to(memory_format=torch.channels_last),)
    image = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    (answer,) = run(model, 4, Rows((image.tobytes(),), 2))
    np.testing.assert_array_equal(np.frombuffer(answer[0], np.float32).reshape(image.shape), image * 2)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
)
def test_every_element_type_passes_unchanged(dtype: str, device: FakeDevice) -> None:
    spec = TensorSpec("x", dtype, (3,))
    model = FakeCompiled(device=device, inputs=(spec,), outputs=(spec,), forward=lambda x: (x.clone(),))
    sent = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(getattr(torch, dtype)).view(torch.uint8).numpy().tobytes()
    assert run(model, 4, Rows((sent,), 2)) == [(sent,)]


def test_tensors_without_elements(device: FakeDevice) -> None:
    model = FakeCompiled(
        device=device,
        inputs=(TensorSpec("x", "float32", (0, 2)), TensorSpec("z", "int64", ())),
        outputs=(TensorSpec("y", "float32", (2, 0)), TensorSpec("w", "int64", ())),
        forward=lambda x, z: (x.transpose(1, 2), z + 1),
    )
    sent = Rows((b"", np.array([4, 5], dtype=np.int64).tobytes()), 2)
    assert run(model, 4, sent) == [(b"", np.array([5, 6], dtype=np.int64).tobytes())]


def test_memoryviews_are_taken_as_they_are(device: FakeDevice) -> None:
    whole = np.arange(8, dtype=np.float32).tobytes()
    parts = run(FakeCompiled(device=device), 4, Rows((memoryview(whole)[8:24],), 2))
    np.testing.assert_array_equal(floats(parts[0]), [[4, 6], [8, 10]])


def test_warming_runs_the_bucket_on_zeros(device: FakeDevice) -> None:
    model = FakeCompiled(device=device)
    with model.device.bind():
        timing = Lanes(model).warm(8)
    assert timing.total_s >= timing.replay_s > 0
    assert set(model.device.replays) == {8}
    assert not model.graphs[8].inputs[0].any()


def address(part: tuple[memoryview, ...]) -> int:
    return int(np.frombuffer(part[0], dtype=np.uint8).ctypes.data)


@pytest.mark.parametrize("lanes", [1, 2])
def test_one_lane_alone_answers_from_where_the_graph_wrote(lanes: int, device: FakeDevice) -> None:
    model = FakeCompiled(device=device)
    lane = Lanes(model, lanes).take()
    with device.bind():
        (part,), _ = lane.run(batch_of(model, 1, rows_of([1.5])))
    assert (address(part) == model.graphs[1].outputs[0].data_ptr()) == (device.maps and lanes == 1)
    np.testing.assert_array_equal(np.frombuffer(part[0], np.float32), [3.0, 3.0])


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_switched_graph_gets_the_rows_and_gives_the_answers(lanes: int, device: FakeDevice) -> None:
    model = FakeCompiled(device=device)
    all_lanes = Lanes(model, lanes)
    tripled = FakeGraph(device, 4, model.inputs, model.outputs, lambda x: (x * 3,))
    all_lanes.switch(4, tripled)
    for _ in range(lanes):
        (part,) = run_in(all_lanes.take(), model, 4, rows_of([1.0, 2.0]))
        np.testing.assert_array_equal(floats(part), [[3, 3], [6, 6]])


@pytest.mark.parametrize("lanes", [1, 2])
def test_outputs_that_are_made_anew_are_read_where_they_are_while_others_run(lanes: int) -> None:
    device = FakeDevice()
    device.maps = True
    model = FakeCompiled(outputs=(Y, Y), forward=lambda x: (x * 2, x * 3), device=device)
    graph = model.graphs[4]
    graph.fresh = frozenset({1})
    ours = Lanes(model, lanes)
    runs, where = [], []
    with device.bind():
        for value in range(lanes):
            lane = ours.take()
            runs.append((lane, lane.begin(batch_of(model, 4, rows_of([value + 1.0])), alone=True)))
            where.append(graph.outputs[1])
        for value, (lane, run) in enumerate(runs):
            (part,), _ = lane.end(run)
            np.testing.assert_array_equal(np.frombuffer(part[0], np.float32), [2.0 * (value + 1)] * 2)
            np.testing.assert_array_equal(np.frombuffer(part[1], np.float32), [3.0 * (value + 1)] * 2)
            assert address(part[1:]) == where[value].data_ptr()
