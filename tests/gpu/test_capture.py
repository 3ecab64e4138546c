"""Captured graphs on the GPU: every policy, fresh inputs, delays, memory."""

from __future__ import annotations

import gc
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from opara_server.engine.capture import capture
from opara_server.engine.device import Device, open_device
from opara_server.engine.errors import CaptureError
from opara_server.engine.export import export_dynamic
from opara_server.engine.graph import Buffer, Kind, Operator, OperatorGraph
from opara_server.engine.launch import LaunchList, launch_list
from opara_server.engine.lower_aten import lower
from opara_server.engine.memory import memory_bytes
from opara_server.engine.policies import POLICIES, make_schedule, prioritise
from opara_server.engine.profile import Profile
from opara_server.engine.program import Call, Placed, Program, Ref
from opara_server.engine.schedule import compact
from opara_server.engine.tensors import fill_random, static_inputs
from opara_server.engine.verify import error_norm, poison
from tests.gpu.answers import BOUND, agreeing
from tests.gpu.nets import NETS, Inceptions, make

REPLAYS = 120


def lowered(name: str, rows: int) -> tuple[nn.Module, Program, Any]:
    module, specs = make(name)
    exported = export_dynamic(module, static_inputs(specs, 4, torch.device("cuda"), False))
    assert exported is not None
    return module, lower(exported, static_inputs(specs, rows, torch.device("cuda"), False)), specs


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("policy", [*POLICIES, "critical_path:2"])
@pytest.mark.parametrize("name", NETS)
def test_replays_on_fresh_inputs_agree_with_eager(name: str, policy: str, compacted: bool, device: Device) -> None:
    module, program, specs = lowered(name, 3)
    schedule = make_schedule(program.graph, Profile.uniform(len(program.graph)), policy)
    graph = capture(program, compact(program.graph, schedule) if compacted else schedule, device)
    with agreeing() as agree:
        for _ in range(REPLAYS):
            fill_random(graph.inputs, specs)
            poison(graph.outputs)
            graph.replay()
            agree(graph.outputs, pytree.tree_leaves(module(*graph.inputs)))


def delayed(microseconds: int, *parts: Tensor) -> Tensor:
    """A sum that starts late: the delay is on the GPU, so a missing dependency reads what is not there yet."""
    torch.cuda._sleep(microseconds * 1500)  # cycles, at about 1.5 GHz
    total = parts[0] * 2
    for part in parts[1:]:
        total = total + part
    return total


def delayed_into(out: Tensor, *arguments: Any) -> None:
    """The same in memory that it is given."""
    microseconds, first, *others = arguments
    torch.cuda._sleep(microseconds * 1500)
    torch.mul(first, 2, out=out)
    for part in others:
        out.add_(part)


def with_explicit_buffers(program: Program) -> Program:
    """A random program whose sums are written into memory that is there when a run begins."""
    (source,), (output,) = program.inputs, program.outputs
    layout = tuple(source.shape), source.stride()
    count = len(program.graph)
    kinds = [Kind.INPUT, *[Kind.ARENA] * (count - 1), Kind.OUTPUT]
    buffers = tuple(replace(b, kind=kind) for b, kind in zip(program.graph.buffers, kinds, strict=True))
    return replace(
        program,
        graph=replace(program.graph, buffers=buffers),
        bodies=tuple(
            (Call(delayed_into, (Ref(call.result), *call.args), {}, program.value_count),) for (call,) in program.bodies
        ),
        value_count=program.value_count + 1,
        arena=tuple(Placed(b, b, source.dtype, *layout) for b in range(1, count)),
        allocations=(Call(torch.empty_strided, layout, {"dtype": source.dtype, "device": source.device}, output),),
    )


def random_program(random: Random, count: int, size: int) -> Program:
    """A DAG of delayed sums, all different: each adds its own number, so that a stale block is seen."""
    source = torch.randn(size, device="cuda")
    biases = [torch.full((size,), float(i), device="cuda") for i in range(count)]
    operators, bodies, buffers = [], [], [Buffer(source.nbytes, Kind.INPUT)]
    for index in range(count):
        sources = random.sample(range(index + 1), min(index + 1, random.randint(1, 3)))
        bias = index + 1 + count
        bodies.append((Call(delayed, (random.choice([0, 0, 5, 40]), *map(Ref, sources), Ref(bias)), {}, index + 1),))
        operators.append(Operator(f"sum{index}", "delayed", tuple(sources), (index + 1,)))
        buffers.append(Buffer(source.nbytes, Kind.OUTPUT if index == count - 1 else Kind.ACTIVATION))
    return Program(
        lowering="test",
        graph=OperatorGraph.from_accesses(operators, buffers),
        bodies=tuple(bodies),
        value_count=1 + 2 * count,
        fixed={0: source} | {1 + count + i: bias for i, bias in enumerate(biases)},
        buffer_values=tuple((i,) for i in range(count + 1)),
        inputs=(source,),
        outputs=(count,),
        traffic=(0,) * count,
    )


@pytest.mark.parametrize("seed", range(6))
def test_random_programs_with_delays_give_the_same_on_every_schedule(seed: int, device: Device) -> None:
    program = random_program(Random(seed), 40, 1 << 14)
    for policy in POLICIES:
        graph = capture(program, make_schedule(program.graph, Profile.uniform(40), policy), device)
        for _ in range(20):
            graph.inputs[0].normal_()
            (expected,) = program.run_in_order()
            poison(graph.outputs)
            graph.replay()
            torch.testing.assert_close(graph.outputs[0], expected, rtol=0, atol=0)


SEED_AND_OFFSET = 2 * 512  # of PyTorch's random numbers, bytes: in the first of several graphs


@pytest.mark.parametrize("seed", range(4))
def test_explicit_buffers_share_memory_and_give_the_same_on_every_schedule(seed: int, device: Device) -> None:
    program = with_explicit_buffers(random_program(Random(seed), 40, 1 << 14))
    graphs = [
        capture(program, make_schedule(program.graph, Profile.uniform(40), policy), device) for policy in POLICIES
    ]
    assert graphs[0].arena.nbytes < 30 * program.inputs[0].nbytes
    for graph, policy in zip(graphs, POLICIES, strict=True):
        need = memory_bytes(program.graph, make_schedule(program.graph, Profile.uniform(40), policy))
        assert graph.peak_bytes in (need, need + SEED_AND_OFFSET)
    for _ in range(20):
        program.inputs[0].normal_()
        (expected,) = program.run_in_order()
        for graph in graphs:
            poison((*graph.outputs, graph.arena))
            graph.replay()
            torch.testing.assert_close(graph.outputs[0], expected, rtol=0, atol=0)


def test_the_delays_would_show_a_wrong_arena(device: Device) -> None:
    program = with_explicit_buffers(random_program(Random(3), 40, 1 << 14))
    right = launch_list(program.graph, make_schedule(program.graph, Profile.uniform(40), "nimble"))
    one_place = replace(right.arena, offsets=dict.fromkeys(right.arena.offsets, 0))
    graph = device.capture(program, replace(right, arena=one_place))
    (expected,) = program.run_in_order()
    graph.replay()
    assert not torch.equal(graph.outputs[0], expected)


def test_graphs_share_the_arena_s_block_and_the_device_says_what_they_hold(device: Device) -> None:
    programs = [with_explicit_buffers(random_program(Random(1), count, 1 << 14)) for count in (60, 30)]
    larger, smaller = (
        capture(program, make_schedule(program.graph, Profile.uniform(len(program.graph)), "wavefront"), device)
        for program in programs
    )
    assert smaller.arena is larger.arena
    held = device.held_bytes()
    assert held >= larger.arena.nbytes + larger.outputs[0].nbytes + smaller.outputs[0].nbytes
    for _ in range(3):
        for program, graph in zip(programs, (larger, smaller), strict=True):
            (expected,) = program.run_in_order()
            poison(graph.outputs)
            graph.replay()
            torch.testing.assert_close(graph.outputs[0], expected, rtol=0, atol=0)
    larger.close()
    assert 0 < device.held_bytes() <= held
    smaller.close()
    assert device.held_bytes() == 0


def test_the_delays_would_show_a_missing_dependency(device: Device) -> None:
    program = random_program(Random(3), 40, 1 << 14)
    right = launch_list(program.graph, make_schedule(program.graph, Profile.uniform(40), "nimble"))
    forks = {x.stream: x.operator for x in reversed(right.launches)}
    unwaiting = tuple(
        replace(x, waits=(), frees=(), fork=x.stream != 0 and forks[x.stream] == x.operator) for x in right.launches
    )
    ends = {x.stream: x.operator for x in right.launches if x.stream}
    launches = tuple(replace(x, awaited=x.awaited or x.operator in ends.values()) for x in unwaiting)
    graph = device.capture(program, LaunchList(launches, right.streams, tuple(ends.values()), frozenset()))
    differs = 0
    for _ in range(10):
        graph.inputs[0].normal_()
        (expected,) = program.run_in_order()
        graph.replay()
        differs += not torch.equal(graph.outputs[0], expected)
    assert differs


def settled(device: Device) -> None:
    """Nothing cached is left that a capture could reuse or that a trim would give back later."""
    gc.collect()
    device.trim()


def test_smaller_buckets_live_in_the_largest_one_s_memory(device: Device) -> None:
    module, specs = make("inceptions")
    exported = export_dynamic(module, static_inputs(specs, 16, torch.device("cuda"), False))
    assert exported is not None
    programs = [lower(exported, static_inputs(specs, rows, torch.device("cuda"), False)) for rows in (16, 8, 4, 2, 1)]
    schedule = make_schedule(programs[0].graph, Profile.uniform(len(programs[0].graph)), "nimble")
    capture(programs[0], schedule, device).close()  # cuBLAS takes its workspaces, which stay
    settled(device)
    kept, reserved, before = [], [], torch.cuda.memory_reserved()
    for program in programs:
        kept.append(capture(program, schedule, device))
        settled(device)
        reserved.append(torch.cuda.memory_reserved() - before)
    assert reserved[0] > 0
    assert reserved[-1] <= reserved[0] * 1.25


def test_a_passing_graph_leaves_no_memory_behind(device: Device) -> None:
    module, small, _ = lowered("inceptions", 1)
    _, large, _ = lowered("inceptions", 32)
    schedule = make_schedule(small.graph, Profile.uniform(len(small.graph)), "nimble")
    capture(large, schedule, device).close()  # cuBLAS takes its workspaces, which stay
    kept = capture(small, schedule, device)
    settled(device)
    held, reserved = device.held_bytes(), torch.cuda.memory_reserved()
    passing = capture(large, schedule, device, passing=True)
    assert device.held_bytes() > held
    passing.close()
    settled(device)
    assert (device.held_bytes(), torch.cuda.memory_reserved()) == (held, reserved)
    again = capture(small, schedule, device)
    for graph in (kept, again):
        graph.inputs[0].normal_()
        graph.replay()
        assert error_norm(graph.outputs[0], module(*graph.inputs)["logits"]) <= BOUND


def test_a_longer_chain_needs_no_more_memory(device: Device) -> None:
    def peak(modules: int) -> int:
        module = Inceptions(modules).eval().cuda().half()
        inputs = static_inputs(NETS["inceptions"][1], 8, torch.device("cuda"), False)
        exported = export_dynamic(module, inputs)
        assert exported is not None
        program = lower(exported, inputs)
        schedule = make_schedule(program.graph, Profile.uniform(len(program.graph)), "nimble")
        capture(program, schedule, device).close()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        capture(program, schedule, device).close()
        return torch.cuda.max_memory_allocated() - before

    assert peak(8) <= peak(4) * 1.1


def test_urgent_streams_are_captured_with_priority(device: Device) -> None:
    module, program, _ = lowered("inceptions", 2)
    profile = Profile.uniform(len(program.graph))
    schedule = prioritise(program.graph, profile, make_schedule(program.graph, profile, "nimble"))
    assert schedule.urgent
    graph = capture(program, schedule, device)
    graph.replay()
    assert error_norm(graph.outputs[0], module(*graph.inputs)["logits"]) <= BOUND


def test_what_cannot_be_captured_is_refused_and_the_device_goes_on(device: Device) -> None:
    def looks_at_data(x: Tensor) -> Tensor:
        return x * float(x.sum())

    source = torch.randn(8, device="cuda")
    graph = OperatorGraph.from_accesses([Operator("bad", "item", (0,), (1,))], [Buffer(32, Kind.INPUT), Buffer(32)])
    bad = Program(
        "test", graph, ((Call(looks_at_data, (Ref(0),), {}, 1),),), 2, {0: source}, ((0,), (1,)), (source,), (1,), (0,)
    )
    with pytest.raises(CaptureError, match="captur"):
        capture(bad, make_schedule(graph, Profile.uniform(1), "sequential"), device)
    module, program, _ = lowered("inceptions", 2)
    good = capture(program, make_schedule(program.graph, Profile.uniform(len(program.graph)), "opara"), device)
    good.replay()
    assert error_norm(good.outputs[0], module(*good.inputs)["logits"]) <= BOUND


def test_loading_and_unloading_does_not_leak(device: Device) -> None:
    _, program, _ = lowered("attention", 16)

    def load_and_unload() -> int:
        other = open_device("cuda")
        schedule = make_schedule(program.graph, Profile.uniform(len(program.graph)), "nimble")
        graph = capture(program, schedule, other)
        settled(other)
        held = torch.cuda.memory_reserved()
        other.close()
        del graph
        settled(device)
        assert torch.cuda.memory_reserved() < held
        return torch.cuda.memory_reserved()

    after_first = load_and_unload()
    assert [load_and_unload() for _ in range(4)] == [after_first] * 4
