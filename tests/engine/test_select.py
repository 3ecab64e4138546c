"""Which schedule runs, by times that are written down here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest
import torch

from opara_server.engine.choice import Choice
from opara_server.engine.contenders import Contender, contenders, shortlist, with_urgent
from opara_server.engine.device import CapturedGraph
from opara_server.engine.errors import CaptureError
from opara_server.engine.launch import LaunchList, launch_list
from opara_server.engine.memory import memory_bytes
from opara_server.engine.plan import BEYOND_BUDGET
from opara_server.engine.policies import POLICIES, quick_policies
from opara_server.engine.profile import OperatorProfile, Profile, Roofline
from opara_server.engine.program import Program
from opara_server.engine.schedule import assemble, check
from opara_server.engine.select import measure, select
from opara_server.engine.simulate import IDEAL, Latency
from tests.engine.devices import ScriptedDevice
from tests.engine.programs import program_of


def add(*operands: torch.Tensor) -> torch.Tensor:
    return torch.stack(operands).sum(0)


# Two chains of three from the input, joined: streams keep blocks of their own, so that more of them need more memory.
PROGRAM = program_of((add, [0]), (add, [1]), (add, [2]), (add, [0]), (add, [4]), (add, [5]), (add, [3, 6]))
CHAIN = program_of((add, [0]), (add, [1]), (add, [2]))
PROFILE = Profile(tuple(OperatorProfile(1.0, 0, 1, footprint=0.1) for _ in range(7)), Roofline(1.0, 1e12))
LATENCY = Latency(0.0)


def entrant(policy: str, streams: list[int]) -> Contender:
    return Contender(PROGRAM, PROFILE, assemble(policy, PROGRAM.graph, range(7), streams), compact=False)


SEQUENTIAL = entrant("sequential", [0] * 7)
TWO = entrant("two", [0, 0, 0, 1, 1, 1, 0])
SEVEN = entrant("seven", list(range(7)))


@pytest.fixture
def choose() -> Iterator[Callable[..., Choice]]:
    """select() on a device whose clock says what each number of streams takes."""
    devices = []

    def run(
        times: dict[int, float | Callable[[int], float]], refused: tuple[int, ...] = (), budget_s: float = 60.0
    ) -> Choice:
        def microseconds(streams: int, replay: int) -> float:
            time = times[streams]
            return time(replay) if callable(time) else time

        device = ScriptedDevice(microseconds, refused=refused)
        devices.append(device)
        with device.bind():
            try:
                return select([SEQUENTIAL, TWO, SEVEN], device, budget_s)
            finally:
                assert all(graph.closed for graph in device.graphs)

    yield run
    for device in devices:
        device.close()


def test_the_fastest_wins(choose: Callable[..., Choice]) -> None:
    choice = choose({1: 100.0, 2: 80.0, 7: 60.0})
    assert [c.measured_us for c in choice.candidates] == pytest.approx([100.0, 80.0, 60.0])
    assert (choice.chosen.policy, choice.best, choice.simplest) == ("seven", SEVEN.runnable, SEQUENTIAL.runnable)
    assert [c.streams for c in choice.candidates] == [1, 2, 7]
    assert [c.synchronisations for c in choice.candidates] == [0, 1, 6]
    predicted = [c.predicted_us for c in choice.candidates]
    assert predicted[0] == pytest.approx(7.0)  # seven operators of 1 µs each
    assert min(predicted[1:]) >= 4.0  # the longest path


def test_within_the_margin_sequential_stays(choose: Callable[..., Choice]) -> None:
    assert choose({1: 100.0, 2: 99.5, 7: 120.0}).winner == 0
    assert choose({1: 100.0, 2: 98.0, 7: 120.0}).winner == 1


def test_the_margin_grows_with_the_noise(choose: Callable[..., Choice]) -> None:
    def noisy(replay: int) -> float:
        return 60.0 if replay % 4 < 2 else 140.0

    assert choose({1: noisy, 2: 97.0, 7: 120.0}).winner == 0
    assert choose({1: 100.0, 2: 97.0, 7: 120.0}).winner == 1


def test_among_the_fast_the_one_with_least_memory_wins(choose: Callable[..., Choice]) -> None:
    choice = choose({1: 100.0, 2: 60.9, 7: 60.0})
    assert choice.chosen.policy == "two"
    needs = [memory_bytes(PROGRAM.graph, contender.schedule) for contender in (SEQUENTIAL, TWO, SEVEN)]
    assert [c.peak_bytes for c in choice.candidates] == needs
    assert needs[0] <= needs[1] < needs[2]
    assert choose({1: 100.0, 2: 64.0, 7: 60.0}).chosen.policy == "seven"


def test_little_memory_does_not_excuse_what_is_no_faster_than_sequential(choose: Callable[..., Choice]) -> None:
    assert choose({1: 100.0, 2: 100.2, 7: 98.5}).chosen.policy == "seven"


def test_what_cannot_be_captured_is_told_and_left_out(
    choose: Callable[..., Choice], caplog: pytest.LogCaptureFixture
) -> None:
    choice = choose({1: 100.0, 2: 80.0}, refused=(7,))
    assert choice.chosen.policy == "two"
    assert (choice.candidates[2].rejected, choice.candidates[2].measured_us) == ("cannot be captured", 0.0)
    assert "seven cannot be captured: 7 streams are too many" in caplog.text


def test_without_sequential_there_is_no_choice(choose: Callable[..., Choice]) -> None:
    with pytest.raises(CaptureError, match="1 streams"):
        choose({2: 1.0, 7: 1.0}, refused=(1,))


def test_without_time_only_the_simplest_and_the_most_promising_are_measured(choose: Callable[..., Choice]) -> None:
    choice = choose({1: 100.0, 2: 80.0, 7: 60.0}, budget_s=0.0)
    promising = min((1, 2), key=lambda number: choice.candidates[number].predicted_us)
    beyond = 3 - promising
    assert choice.winner == promising
    assert choice.candidates[promising].measured_us == pytest.approx({1: 80.0, 2: 60.0}[promising])
    assert (choice.candidates[beyond].measured_us, choice.candidates[beyond].rejected) == (0.0, BEYOND_BUDGET)


def test_the_shortlist_has_the_most_promising_and_what_everything_is_compared_with() -> None:
    entrants = steps(PROGRAM)
    best = min(entrants, key=lambda entrant: entrant.predicted_us(LATENCY))
    short = shortlist(entrants, LATENCY, count=1)
    assert {entrant.schedule.policy for entrant in short} == {"sequential", "opara", best.schedule.policy}
    assert short[0] is entrants[0]
    assert shortlist(entrants, LATENCY, count=len(entrants)) == [
        entrant
        for number, entrant in enumerate(entrants)
        if entrant.schedule.policy in {"sequential", "opara"}
        or entrant.key not in {earlier.key for earlier in entrants[:number]}
    ]


@pytest.mark.parametrize(
    ("durations", "footprint", "latency", "best"),
    [
        ([9.0] * 9, 0.1, Latency(), "critical_path"),
        ([9.0] * 9, 1.0, Latency(), "critical_path:3"),
        ([90.0, *[1.0] * 8], 0.1, IDEAL, "critical_path:2"),
    ],
    ids=["there is room", "one fills the device", "all are equally fast"],
)
def test_of_each_policy_only_the_best_number_of_streams_is_shortlisted(
    durations: list[float], footprint: float, latency: Latency, best: str
) -> None:
    program = program_of(*((add, [0]) for _ in range(9)), outputs=range(1, 10))
    operators = tuple(OperatorProfile(duration, 0, 1, footprint=footprint) for duration in durations)
    entrants = contenders(program, replace(PROFILE, operators=operators), quick_policies(9)[4:], 32)
    counts = [e.schedule.policy for e in entrants if e.schedule.policy.startswith("critical_path")]
    assert counts == ["critical_path", *(f"critical_path:{count}" for count in (8, 6, 4, 3, 2))]
    short = shortlist(entrants, latency, count=len(entrants))
    assert [e.schedule.policy for e in short if e.schedule.policy in counts] == [best]


def test_the_most_promising_contend_with_urgent_streams_as_well() -> None:
    line, wide = entrant("line", [0, 1, 0, 0, 0, 0, 0]), entrant("wide", [0, 1, 2, 3, 3, 3, 0])
    entrants = [SEQUENTIAL, line, TWO, SEVEN, wide]
    by_promise = sorted(entrants, key=lambda e: e.predicted_us(LATENCY))
    assert SEQUENTIAL not in by_promise[:2]
    both = with_urgent(entrants, LATENCY, count=2)
    names = [e.schedule.policy for e in both]
    for promising in by_promise[:2]:
        place = names.index(promising.schedule.policy)
        assert names[place + 1] == f"urgent({names[place]})"
        assert both[place + 1].schedule.steps == promising.schedule.steps
        assert set() < both[place + 1].schedule.urgent < set(range(promising.schedule.streams))
    assert [e for e in both if not e.schedule.urgent] == entrants
    assert len(both) == len(entrants) + 2


def test_where_all_streams_carry_the_longest_path_none_is_urgent() -> None:
    chain = Contender(CHAIN, Profile.uniform(3), assemble("two", CHAIN.graph, range(3), [0, 1, 0]), compact=False)
    assert with_urgent([chain, SEQUENTIAL], LATENCY) == [chain, SEQUENTIAL]


@pytest.mark.parametrize(
    ("urgent_us", "policy"), [(-10.0, "urgent(seven)"), (-0.5, "seven"), (0.5, "seven"), (10.0, "seven")]
)
def test_urgent_streams_win_only_where_they_are_faster_by_more_than_the_noise(urgent_us: float, policy: str) -> None:
    device = ScriptedDevice(lambda streams, _replay: {1: 100.0, 7: 60.0}[streams], urgent_us=urgent_us)
    with device.bind():
        choice = select(with_urgent([SEQUENTIAL, SEVEN], LATENCY), device)
    device.close()
    assert choice.chosen.policy == policy
    assert len({candidate.key for candidate in choice.candidates}) == 3
    assert bool(choice.best.schedule.urgent) == (policy == "urgent(seven)")
    assert [c.measured_us for c in choice.candidates] == pytest.approx([100.0, 60.0, 60.0 + urgent_us])


def test_urgent_ones_take_nobody_s_time() -> None:
    urgent = []

    class Noting(ScriptedDevice):
        def capture(self, program: Program, launches: LaunchList, *, passing: bool = False) -> CapturedGraph:
            urgent.append(bool(launches.urgent))
            return super().capture(program, launches, passing=passing)

    device = Noting()
    with device.bind():
        select(with_urgent([SEQUENTIAL, TWO, SEVEN], LATENCY), device)
    device.close()
    assert urgent == [False, False, False, True, True]


def test_lowerings_contend_with_each_other() -> None:
    fused = replace(SEVEN, program=replace(PROGRAM, lowering="fused"))
    device = ScriptedDevice(lambda streams, _replay: {1: 100.0, 7: 70.0}[streams])
    with device.bind():
        choice = select([SEQUENTIAL, fused], device)
    device.close()
    assert (choice.best, choice.chosen.lowering, choice.sequential.lowering) == (fused.runnable, "fused", "aten")


def test_the_best_of_each_other_lowering_stands_by() -> None:
    def of(lowering: str, entrant: Contender) -> Contender:
        return replace(entrant, program=replace(PROGRAM, lowering=lowering))

    entrants = [SEQUENTIAL, TWO, of("a", TWO), of("a", SEVEN), of("b", TWO), of("b", SEVEN), of("c", SEQUENTIAL)]
    device = ScriptedDevice(lambda streams, _replay: {1: 100.0, 2: 80.0, 7: 60.0}[streams])
    with device.bind():
        choice = select(entrants, device)
    device.close()
    assert (choice.winner, [number for number, _ in choice.others]) == (3, [5, 1, 2])
    for number in (5, 1, 2, 0):
        choice = choice.falling_back("wrong numbers")
        assert (choice.winner, choice.best) == (number, entrants[number].runnable)
    assert [number for number, c in enumerate(choice.candidates) if c.rejected] == [1, 2, 3, 5]


def test_the_next_policy_of_the_same_lowering_stands_by(choose: Callable[..., Choice]) -> None:
    choice = choose({1: 100.0, 2: 80.0, 7: 60.0}).falling_back("wrong numbers")
    assert (choice.best, choice.chosen.policy, choice.others) == (TWO.runnable, "two", ())


def test_what_is_the_same_graph_or_policy_as_the_best_does_not_stand_by() -> None:
    same_graph = replace(SEVEN, schedule=replace(SEVEN.schedule, policy="other"))
    same_policy = replace(TWO, schedule=replace(TWO.schedule, policy="seven"), compact=True)
    device = ScriptedDevice(lambda streams, _replay: {1: 100.0, 2: 80.0, 7: 60.0}[streams])
    with device.bind():
        choice = select([SEQUENTIAL, SEVEN, same_graph, same_policy], device)
    device.close()
    assert (choice.winner, choice.others) == (1, ())


def test_falling_back(choose: Callable[..., Choice]) -> None:
    choice = choose({1: 100.0, 2: 120.0, 7: 60.0}).falling_back("wrong numbers")
    assert (choice.best, choice.chosen) == (SEQUENTIAL.runnable, choice.sequential)
    assert [c.rejected for c in choice.candidates] == ["", "", "wrong numbers"]


def test_measuring_takes_turns() -> None:
    device = ScriptedDevice(lambda streams, replay: 10.0 * streams + (1000.0 if replay == 0 else 0.0))
    with device.bind():
        graphs = [device.capture(CHAIN, launches) for launches in launch_lists()]
        timings = measure(graphs, device)
        counts = [graph.replays for graph in device.graphs]
    device.close()
    assert [t.median for t in timings] == pytest.approx([10.0, 20.0])
    assert [t.spread for t in timings] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert counts[0] == counts[1] > 2 * 15


def test_the_device_is_kept_busy_ahead_of_every_two_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    device, before = ScriptedDevice(lambda streams, _replay: 10.0 * streams), list[int]()
    monkeypatch.setattr(device, "occupy", lambda: before.append(sum(graph.replays for graph in device.graphs)))
    with device.bind():
        graphs = [device.capture(CHAIN, launches) for launches in launch_lists()]
        measure(graphs, device)
    device.close()
    assert len(before) > 2 * 15
    assert before == list(range(0, 2 * len(before), 2))


def launch_lists() -> Iterator[LaunchList]:
    for streams in ([0, 0, 0], [0, 1, 0]):
        yield launch_list(CHAIN.graph, assemble("test", CHAIN.graph, range(3), streams))


def steps(program: Program, policies: Iterable[str] = POLICIES, streams: int = 32) -> list[Contender]:
    found = contenders(program, Profile.uniform(len(program.graph)), policies, streams)
    for contender in found:
        check(program.graph, contender.schedule)
    return found


def start_hidden(policy: str) -> str:
    """A search bears the policy that it started from."""
    return policy.partition("(")[0]


def test_every_policy_contends_and_sequential_is_first() -> None:
    found = steps(PROGRAM)
    assert (found[0].schedule.policy, found[0].schedule.streams) == ("sequential", 1)
    assert [start_hidden(c.schedule.policy) for c in found if not c.compact] == list(POLICIES)
    for compacted in (c for c in found if c.compact):
        plain = next(c for c in found if c.schedule.policy == compacted.schedule.policy)
        assert compacted.schedule.streams < plain.schedule.streams


def test_one_graph_serves_all_policies_that_agree() -> None:
    device = ScriptedDevice()
    with device.bind():
        choice = select(steps(CHAIN), device)
    device.close()
    assert len(device.graphs) == 1
    assert [start_hidden(c.policy) for c in choice.candidates] == list(POLICIES)
    assert {c.measured_us for c in choice.candidates} == {choice.sequential.measured_us}
    assert choice.winner == 0


def test_one_policy_runs_against_sequential() -> None:
    for policy in ("opara", "critical_path:2"):
        assert {c.schedule.policy for c in steps(PROGRAM, [policy])} == {"sequential", policy}
    assert len(steps(PROGRAM, ["sequential"])) == 1
    with pytest.raises(ValueError, match="unknown policy 'fastest'"):
        steps(PROGRAM, ["fastest"])


def test_a_search_that_is_stopped_still_contends() -> None:
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return True

    found = contenders(PROGRAM, Profile.uniform(7), ["nimble", "search"], 32, stop)
    assert [start_hidden(c.schedule.policy) for c in found if not c.compact] == ["sequential", "nimble", "search"]
    assert asked


def test_what_is_one_operator_has_nothing_to_choose_from() -> None:
    whole = replace(CHAIN, lowering="whole")
    assert [c.schedule.policy for c in steps(whole)] == ["sequential"]


def test_no_contender_has_more_streams_than_the_device() -> None:
    wide = program_of(*((add, [0]) for _ in range(9)), outputs=range(1, 10))
    assert max(c.schedule.streams for c in steps(wide)) == 9
    assert max(c.schedule.streams for c in steps(wide, streams=3)) == 3
