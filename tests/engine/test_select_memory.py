"""Which schedule runs where one needs more memory than another."""

from __future__ import annotations

from dataclasses import replace

import torch

from opara_server.engine.arena import ALIGNMENT
from opara_server.engine.contenders import LIMIT, Contender, limits_bytes, with_lean
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.schedule import assemble
from opara_server.engine.select import select
from opara_server.engine.simulate import IDEAL
from tests.engine.dags import explicit
from tests.engine.devices import ScriptedDevice
from tests.engine.programs import program_of
from tests.engine.test_lean import small_kernels


def add(*operands: torch.Tensor) -> torch.Tensor:
    return torch.stack(operands).sum(0)


ANY = program_of((add, [0]))


def entrant(program: Program, policy: str, streams: list[int]) -> Contender:
    count = len(program.graph)
    schedule = assemble(policy, program.graph, range(count), streams)
    return Contender(program, Profile.uniform(count), schedule, compact=False)


def test_more_memory_than_sequential_s_must_be_worth_a_twentieth_of_the_time() -> None:
    sources = [(add, [0])] * 11
    program = program_of(*sources, (add, range(1, 12)), (add, [12]), (add, [13]), (add, [14]), (add, [15]))
    sequential = entrant(program, "sequential", [0] * 16)
    five = entrant(program, "five", [0] * 12 + [1, 2, 3, 4])
    two = entrant(program, "two", [0] * 15 + [1])
    assert sequential.peak_bytes < two.peak_bytes <= LIMIT * sequential.peak_bytes < five.peak_bytes

    def winner(five_us: float, two_us: float) -> str:
        device = ScriptedDevice(lambda streams, _replay: {1: 100.0, 2: two_us, 5: five_us}[streams])
        with device.bind():
            choice = select([sequential, five, two], device)
        device.close()
        return choice.chosen.policy

    assert [winner(60.0, 64.2), winner(60.0, 64.5), winner(97.0, 100.0)] == ["two", "five", "five"]


def test_a_program_that_needs_more_in_sequence_may_need_as_much_in_parallel_and_no_more() -> None:
    slim = program_of((add, [0]), (add, [1]), (add, [2]))
    wide = program_of(*[(add, [0])] * 11, (add, range(1, 12)))
    simplest, own = entrant(slim, "sequential", [0] * 3), entrant(wide, "sequential", [0] * 12)
    two = entrant(wide, "two", [0] * 11 + [1])
    allowed = int(LIMIT * simplest.peak_bytes)
    assert own.peak_bytes > allowed
    assert limits_bytes([simplest, own, two]) == [allowed, own.peak_bytes, own.peak_bytes]


def test_what_needs_too_much_memory_contends_with_a_lean_version_of_itself() -> None:
    graph = explicit(OperatorGraph.from_edges(6, [(0, 1), (1, 2), (3, 4), (4, 5)]))
    program = replace(ANY, graph=graph)
    entrants = [
        entrant(program, "sequential", [0] * 6),
        entrant(program, "parallel", [0, 0, 0, 1, 1, 1]),
        entrant(program, "line", [0, 1, 0, 0, 0, 0]),
    ]
    found = with_lean(entrants, IDEAL)
    assert [c.schedule.policy for c in found] == ["sequential", "parallel", "lean(parallel)", "line"]
    assert [c.peak_bytes // ALIGNMENT for c in found] == [2, 4, 2, 2]
    assert len({(c.schedule.policy, c.compact) for c in found}) == len(found)


def test_only_the_most_promising_of_a_program_are_made_lean() -> None:
    """Six chains on as many streams take the least time, on two the most."""
    graph = explicit(OperatorGraph.from_edges(18, [(i, i + 1) for i in range(17) if i % 3 != 2]))
    program = replace(ANY, graph=graph)
    found = [entrant(program, str(count), [operator // 3 % count for operator in range(18)]) for count in (2, 3, 6)]
    entrants = [entrant(program, "sequential", [0] * 18), *found]
    known = with_lean([replace(e, profile=small_kernels(*[10.0] * 18)) for e in entrants], IDEAL)
    assert [c.schedule.policy for c in known] == ["sequential", "2", "3", "lean(3)", "6", "lean(6)"]


def test_without_time_the_very_most_promising_is_made_lean() -> None:
    graph = explicit(OperatorGraph.from_edges(18, [(i, i + 1) for i in range(17) if i % 3 != 2]))
    program = replace(ANY, graph=graph)
    found = [entrant(program, str(count), [operator // 3 % count for operator in range(18)]) for count in (2, 3, 6)]
    entrants = [entrant(program, "sequential", [0] * 18), *found]
    entrants = [replace(e, profile=small_kernels(*[10.0] * 18)) for e in entrants]
    known = with_lean(entrants, IDEAL, stop=lambda: True)
    assert [c.schedule.policy for c in known] == ["sequential", "2", "3", "6", "lean(6)"]


def test_a_program_that_always_needs_more_than_the_simplest_is_held_to_its_own_sequential_graph() -> None:
    """Not to what no schedule of it can do."""
    graph = explicit(OperatorGraph.from_edges(5, [(0, 4), (1, 4), (2, 4), (3, 4)]))
    program = replace(ANY, graph=graph, lowering="fused")
    merged = [entrant(program, "sequential", [0] * 5), entrant(program, "parallel", list(range(5)))]
    simplest = replace(merged[0], program=replace(program, graph=OperatorGraph.from_edges(5, []), lowering="aten"))
    assert simplest.peak_bytes < merged[0].peak_bytes
    assert with_lean([simplest, *merged], IDEAL) == [simplest, *merged]
