"""The CPU as a device: schedules run with true concurrency and random delays, and whether that would show a race."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from random import Random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opara_server.engine.arena import ALIGNMENT
from opara_server.engine.capture import capture
from opara_server.engine.cpu_graph import TRIAL_RUNS
from opara_server.engine.device import CapturedGraph, open_device
from opara_server.engine.device_cpu import CpuDevice
from opara_server.engine.errors import CaptureError, DeviceError
from opara_server.engine.graph import Buffer, Kind, Operator, OperatorGraph
from opara_server.engine.launch import launch_list
from opara_server.engine.lean import lean
from opara_server.engine.memory import memory_bytes
from opara_server.engine.policies import make_schedule
from opara_server.engine.program import Program
from opara_server.engine.schedule import Schedule, ScheduleError, Step, assemble, compact, fold
from opara_server.engine.simulate import IDEAL
from opara_server.engine.verify import poison
from tests.engine.dags import QUICK_POLICIES, programs, random_profile
from tests.engine.programs import mixing_program, observable, partly_explicit, program_of
from tests.engine.test_schedule import random_schedule

REPLAYS = 4
PATIENCE_S = 60.0


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "still not so"
        time.sleep(0.001)


def schedules(graph: OperatorGraph, seed: int) -> Iterator[Schedule]:
    """All policies, compacted, folded, lean, and one at random."""
    random = Random(seed)
    profile = random_profile(graph, random)
    for policy in QUICK_POLICIES:
        schedule = make_schedule(graph, profile, policy)
        yield from (schedule, compact(graph, schedule), fold(graph, schedule, 2))
        if leaner := lean(graph, schedule, profile, IDEAL, memory_bytes(graph, schedule) - 1):
            yield leaner
    yield random_schedule(graph, random, 5)


def right_answer(program: Program) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The inputs as they are before a run, and the outputs of a run in program order."""
    inputs = tuple(tensor.clone() for tensor in program.inputs)
    outputs = program.run_in_order()
    return inputs, outputs


def replayed(graph: CapturedGraph, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    for static, value in zip(graph.inputs, inputs, strict=True):
        static.copy_(value)
    poison(graph.outputs)
    graph.replay()
    return [output.clone() for output in graph.outputs]


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(programs(largest=30), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.7]))
def test_every_schedule_gives_what_program_order_gives(
    device: CpuDevice, graph: OperatorGraph, seed: int, share: float
) -> None:
    program = mixing_program(partly_explicit(observable(graph), seed, share))
    inputs, expected = right_answer(program)
    for schedule in {s.steps: s for s in schedules(program.graph, seed)}.values():
        captured = capture(program, schedule, device)
        assert captured.inputs is program.inputs
        where = [output.data_ptr() for output in captured.outputs]
        for _ in range(REPLAYS):
            poison([captured.arena])
            torch.testing.assert_close(replayed(captured, inputs), list(expected))
        assert [output.data_ptr() for output in captured.outputs] == where


def explicit_program(*reads: Sequence[int]) -> Program:
    """Buffer 0 is the input; operator i reads the buffers ``reads[i]`` and writes buffer i + 1. The last is the output,
    the others are explicit."""
    buffers = [Buffer(32, Kind.INPUT), *[Buffer(32, Kind.ARENA)] * (len(reads) - 1), Buffer(32, Kind.OUTPUT)]
    operators = [Operator(f"op{i}", "test", tuple(read), (i + 1,)) for i, read in enumerate(reads)]
    return mixing_program(OperatorGraph.from_accesses(operators, buffers))


@pytest.mark.parametrize("streams", [1, 3])
def test_a_wrong_arena_shows_in_the_numbers(device: CpuDevice, streams: int) -> None:
    """A chain whose links are read by the next two, with any two that must lie apart in the same place."""
    program = explicit_program((0,), *((i, i + 1) for i in range(7)))
    launches = launch_list(program.graph, assemble("test", program.graph, range(8), [i % streams for i in range(8)]))
    inputs, expected = right_answer(program)
    torch.testing.assert_close(replayed(device.capture(program, launches), inputs), list(expected))
    together = [(one, other) for one, other in combinations(range(1, 8), 2) if other - one <= 2]
    for one, other in together:
        offsets = {**launches.arena.offsets, other: launches.arena.offsets[one]}
        wrong = device.capture(program, replace(launches, arena=replace(launches.arena, offsets=offsets)))
        assert not torch.equal(replayed(wrong, inputs)[0], expected[0]), (one, other)


def test_a_wrong_arena_shows_where_only_other_streams_are_in_the_way(device: CpuDevice) -> None:
    """Two branches, each in turn late: what may only happen at the same time does happen in the wrong order."""
    program = explicit_program((0,), (0,), (1,), (2,), (3, 4))
    launches = launch_list(program.graph, assemble("test", program.graph, range(5), [0, 1, 0, 1, 0]))
    inputs, expected = right_answer(program)
    shared = {**launches.arena.offsets, 2: launches.arena.offsets[1]}
    wrong = replace(launches, arena=replace(launches.arena, offsets=shared))
    right, racy = device.capture(program, launches), device.capture(program, wrong)
    assert all(torch.equal(replayed(right, inputs)[0], expected[0]) for _ in range(100))
    assert not all(torch.equal(replayed(racy, inputs)[0], expected[0]) for _ in range(100))


def test_poison_shows_what_is_read_before_it_is_written(device: CpuDevice) -> None:
    program = explicit_program((0,), (0, 1), (1, 2))
    launches = launch_list(program.graph, assemble("test", program.graph, range(3), [0, 0, 0]))
    forgetful = device.capture(replace(program, bodies=((), *program.bodies[1:])), launches)
    forgetful.replay()
    from_stale = forgetful.outputs[0].clone()
    poison([forgetful.arena])
    forgetful.replay()
    assert not torch.equal(forgetful.outputs[0], from_stale)


def fan(width: int, device: CpuDevice) -> tuple[Program, CapturedGraph]:
    """As many explicit buffers in use at the same time."""
    program = explicit_program(*[(0,)] * width, range(1, width + 1))
    return program, capture(program, assemble("test", program.graph, range(width + 1), [0] * (width + 1)), device)


def test_the_graphs_of_a_device_share_one_block(device: CpuDevice) -> None:
    program, graph = fan(8, device)
    assert fan(6, device)[1].arena is fan(8, device)[1].arena is graph.arena
    gc.collect()
    assert device.held_bytes() == 8 * ALIGNMENT + 32
    _, larger = fan(12, device)
    assert larger.arena is not graph.arena
    assert fan(10, device)[1].arena is larger.arena
    inputs, expected = right_answer(program)
    torch.testing.assert_close(replayed(graph, inputs), list(expected))  # in its old block
    gc.collect()
    assert device.held_bytes() == (8 + 12) * ALIGNMENT + 2 * 32
    plain = program_of((lambda x: x + 1, [0]))
    assert capture(plain, assemble("test", plain.graph, [0], [0]), device).arena.nbytes == 0
    block = weakref.ref(larger.arena)
    larger.close()
    assert block() is None
    assert device.held_bytes() == 8 * ALIGNMENT + 32


def without_waits(program: Program, schedule: Schedule, device: CpuDevice, operator: int) -> CapturedGraph:
    launches = launch_list(program.graph, schedule)
    hasty = tuple(replace(x, waits=()) if x.operator == operator else x for x in launches.launches)
    return device.capture(program, replace(launches, launches=hasty))


def test_a_missing_wait_is_refused_and_would_run_too_early(device: CpuDevice) -> None:
    early = threading.Event()

    def slow(x: Tensor) -> Tensor:
        early.wait(PATIENCE_S)
        return x + 1

    def reader(x: Tensor | None) -> Tensor:
        early.set()
        assert x is not None, "read before it was written"
        return x * 2

    program = program_of((slow, [0]), (reader, [1]))
    with pytest.raises(ScheduleError, match="1 may start before 0"):
        capture(program, Schedule("missing", (Step(0, 0), Step(1, 1))), device)
    with pytest.raises(CaptureError, match="read before it was written"):
        without_waits(program, assemble("test", program.graph, [0, 1], [0, 1]), device, operator=1)


def test_a_missing_wait_of_an_in_place_writer_shows_in_the_numbers(device: CpuDevice) -> None:
    overwritten = threading.Event()
    ordered = False

    def reader(y: Tensor) -> Tensor:
        if not ordered:
            assert overwritten.wait(PATIENCE_S)
            overwritten.clear()
        return y.clone()

    def writer(y: Tensor, other: Tensor) -> Tensor:
        y.add_(100)
        overwritten.set()
        return other + 1

    program = program_of(
        (lambda x: x + 1, [0]), (reader, [1]), (lambda x: x * 2, [0]), (writer, [1, 3]), outputs=[2, 4]
    )
    writes = [replace(o, writes=(*o.writes, 1)) if o.name == "op3" else o for o in program.graph.operators]
    program = replace(program, graph=OperatorGraph.from_accesses(writes, program.graph.buffers))
    schedule = assemble("test", program.graph, range(4), [0, 1, 0, 0])
    racy = without_waits(program, schedule, device, operator=3)
    assert racy.outputs[0].unique().item() == 102
    ordered = True
    assert capture(program, schedule, device).outputs[0].unique().item() == 2


def test_released_tensors_are_gone_while_the_run_goes_on(device: CpuDevice) -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def step(x: Tensor) -> Tensor:
        alive.append(sum(ref() is not None for ref in made))  # what is made now is not yet among them
        y = x + 1
        made.append(weakref.ref(y))
        return y

    program = program_of(*((step, [i]) for i in range(20)))
    order = range(20)
    for streams, most in (([0] * 20, 2), ([i // 5 for i in order], 20)):
        graph = capture(program, assemble("test", program.graph, order, streams), device)
        eventually(lambda: all(ref() is None for ref in made))  # a worker lets go just after it has reported
        alive.clear()
        graph.replay()
        assert len(alive) == 20
        assert max(alive) <= most
        assert graph.outputs[0].unique().item() == 21


def test_one_stream_holds_two_links_of_a_chain(device: CpuDevice) -> None:
    program = program_of(*((lambda x: x + 1, [i]) for i in range(20)))
    launches = launch_list(
        program.graph, make_schedule(program.graph, random_profile(program.graph, Random(1)), "opara")
    )
    assert [launch.frees for launch in launches.launches] == [(), (), *((i,) for i in range(1, 19))]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", range(4))
def test_a_failing_operator_hangs_nobody(device: CpuDevice, failing: int, error: type[BaseException]) -> None:
    broken = False

    def operator(number: int) -> Callable[..., Tensor]:
        def run(*operands: Tensor) -> Tensor:
            if broken and number == failing:
                raise error(f"operator {number} breaks")
            return torch.stack(operands).sum(0) + number

        return run

    program = program_of((operator(0), [0]), (operator(1), [1]), (operator(2), [1]), (operator(3), [2, 3]))
    graph = capture(program, assemble("test", program.graph, range(4), [0, 1, 2, 1]), device)
    expected = graph.outputs[0].clone()
    for _ in range(3):
        broken = True
        with pytest.raises(error, match=f"operator {failing} breaks"):
            graph.replay()
        broken = False
        poison(graph.outputs)
        graph.replay()
        assert torch.equal(graph.outputs[0], expected)


def test_what_fails_at_once_is_a_capture_error(device: CpuDevice) -> None:
    program = program_of((lambda x: x.view(3), [0]))
    with pytest.raises(CaptureError, match=r"the model's operators fail: shape '\[3\]' is invalid"):
        capture(program, assemble("test", program.graph, [0], [0]), device)


def test_a_trace_has_each_operator_once_on_its_stream(device: CpuDevice) -> None:
    graph = OperatorGraph.from_edges(12, [(i, j) for j in range(1, 12) for i in range(max(0, j - 3), j, 2)])
    program = mixing_program(observable(graph))
    schedule = assemble("test", program.graph, range(12), [i % 3 for i in range(12)])
    trace = capture(program, schedule, device).trace(5)
    assert len(trace.replays) == 5
    for replay in trace.replays:
        assert sorted(i.stream for i in replay) == [0] * 4 + [1] * 4 + [2] * 4
        assert {i.name: i.stream for i in replay} == {o.name: at % 3 for at, o in enumerate(program.graph.operators)}
        assert all(0 <= i.start_us <= i.end_us for i in replay)
        for stream in range(3):
            own = sorted((i.start_us, i.end_us) for i in replay if i.stream == stream)
            assert all(end <= start for (_, end), (start, _) in pairwise(own))


def test_streams_share_the_threads_and_the_caller_keeps_its_own(device: CpuDevice) -> None:
    seen: dict[str, int] = {}

    def operator(x: Tensor) -> Tensor:
        seen[threading.current_thread().name] = torch.get_num_threads()
        return x + 1

    program = program_of(*((operator, [0]) for _ in range(3)), outputs=[1, 2, 3])
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    graph = capture(program, assemble("test", program.graph, range(3), range(3)), device)
    graph.replay()
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert sorted(seen) == sorted([threading.current_thread().name, "opara-stream-1", "opara-stream-2"])
    assert set(seen.values()) <= {1, 8 // 3}
    assert after == 3


def test_threads_that_wait_for_each_other_are_given_up_early(
    device: CpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine, where PyTorch's threads take a thousand times as long as one."""
    used: list[int] = []
    now = 0.0

    def operator(x: Tensor) -> Tensor:
        nonlocal now
        used.append(torch.get_num_threads())
        now += 0.2 if used[-1] > 1 else 0.0002
        return x + 1

    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr("opara_server.engine.cpu_graph.time", clock)
    monkeypatch.setattr("opara_server.engine.intra_op.time", clock)

    program = program_of((operator, [0]))
    graph = capture(program, assemble("test", program.graph, [0], [0]), device)
    assert 1 <= len(used) - used.count(1) < TRIAL_RUNS / 2
    graph.replay()
    assert used[-1] == 1


def stream_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("opara-stream")}


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "forgotten"])
def test_threads_end_with_the_device(closed: bool) -> None:
    before = stream_threads()
    device = CpuDevice(threads=4)
    program = program_of(*((lambda x: x + 1, [0]) for _ in range(3)), outputs=[1, 2, 3])
    graph = capture(program, assemble("test", program.graph, range(3), range(3)), device)
    graph.replay()
    assert len(stream_threads() - before) == 2
    if closed:
        device.close()
        assert stream_threads() <= before
    del device, graph
    gc.collect()
    eventually(lambda: stream_threads() <= before)


def test_open_device() -> None:
    device = open_device("cpu")
    assert (device.kind, device.torch_device().type) == ("cpu", "cpu")
    assert device.name
    start = device.stamp()
    assert start.elapsed_us(device.stamp()) >= 0
    with pytest.raises(DeviceError, match="unknown device 'tpu'"):
        open_device("tpu")
    if not torch.cuda.is_available():
        assert open_device("auto").kind == "cpu"
        with pytest.raises(DeviceError, match="no GPU"):
            open_device("cuda")
