"""A bucket's search: which programs and policies contend, within the budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opara_server.engine import choose
from opara_server.engine.choice import Choice
from opara_server.engine.choose import Search
from opara_server.engine.contenders import URGENT, Contender, contenders
from opara_server.engine.errors import DeviceError, EngineError
from opara_server.engine.lowerings import Lowerings
from opara_server.engine.options import FUSED, BuildOptions
from opara_server.engine.plan import BEYOND_BUDGET, Candidate
from opara_server.engine.policies import SLOW_POLICIES, quick_policies
from opara_server.engine.profile import OperatorProfile, Profile, Roofline
from opara_server.engine.program import Program
from opara_server.engine.select import select
from tests.engine.devices import ScriptedDevice
from tests.engine.programs import program_of


def add(*operands: Tensor) -> Tensor:
    return torch.stack(operands).sum(0)


BRANCHES = program_of((add, [0]), (add, [0]), (add, [0]), (add, [1, 2, 3]))


class Made(Lowerings):
    """Gives a program for every name, and tells which were asked for."""

    def __init__(self) -> None:
        super().__init__("made", {})
        self.asked: list[str] = []

    def simplest(self, bucket: int, inputs: Sequence[Tensor]) -> Program:  # noqa: ARG002
        return BRANCHES

    def fused(self, bucket: int, inputs: Sequence[Tensor], names: Sequence[str]) -> Iterator[Program]:  # noqa: ARG002
        for name in names:
            self.asked.append(name)
            yield replace(BRANCHES, lowering=name)


class Gpu(ScriptedDevice):
    """Its profiles are always the same: what is promising must not depend on what else runs here."""

    kind = "cuda"

    def profile(self, program: Program) -> Profile:
        duration_us = 100.0 if program.lowering == "aten" else 10.0
        alike = OperatorProfile(duration_us, flops=1000, bytes=10, footprint=0.1)
        return Profile((alike,) * len(program.graph), Roofline(1e9, 1e9))


@dataclass
class Clock:
    """Stands still but for what is said to take time; and is read every millisecond at the most."""

    seconds: float = 0.0

    def __call__(self) -> float:
        self.seconds += 0.001
        return self.seconds


def search(
    options: BuildOptions, device: ScriptedDevice | None = None, clock: Callable[[], float] | None = None
) -> tuple[Made, Search, ScriptedDevice]:
    made, device = Made(), device or Gpu(lambda streams, _replay: 100.0 - streams)
    return made, Search(made, device, options, in_turn=1, clock=clock or Clock()), device


@pytest.mark.parametrize(
    ("lowering", "asked"),
    [("auto", [name for name in FUSED if "max_autotune" not in name]), ("aten", []), ("fused_combo", ["fused_combo"])],
)
def test_the_lowerings_that_the_options_ask_for(lowering: str, asked: list[str]) -> None:
    made, searching, _ = search(BuildOptions((1,), lowering=lowering))
    assert [program.lowering for program in searching.lower(1, ())] == ["aten", *asked]
    assert made.asked == asked


def test_on_a_cpu_there_are_no_fused_ones_unless_asked_for() -> None:
    _, searching, _ = search(BuildOptions((1,)), ScriptedDevice())
    assert [program.lowering for program in searching.lower(1, ())] == ["aten"]


def test_without_time_there_is_one_fused_lowering() -> None:
    made, searching, _ = search(BuildOptions((1,), tuning_budget_s=0.0))
    assert len(searching.lower(1, ())) == 2
    assert made.asked == ["fused_rewritten"]


def candidates(options: BuildOptions, programs: Sequence[Program]) -> tuple[Candidate, ...]:
    _, searching, device = search(options)
    with device.bind():
        found = searching.choose(programs).candidates
    device.close()
    return found


PROGRAMS = [BRANCHES, replace(BRANCHES, lowering="fused"), replace(BRANCHES, lowering="fused_combo")]
QUICK = quick_policies(BRANCHES.graph.width)


@dataclass
class Asked:
    """What contenders is asked for: lowering, policies, and whether to stop after the ``seconds`` that each takes."""

    clock: Clock
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.times: list[tuple[str, Sequence[str], bool]] = []

    def __call__(
        self, program: Program, profile: Profile, policies: Sequence[str], limit: int, stop: Callable[[], bool]
    ) -> list[Contender]:
        self.clock.seconds += self.seconds
        self.times.append((program.lowering, policies, stop()))
        return contenders(program, profile, policies, limit, stop)


def test_slow_policies_work_on_the_most_promising_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(Clock())
    monkeypatch.setattr(choose, "contenders", asked)
    found = candidates(BuildOptions((1,)), PROGRAMS)
    assert (found[0].lowering, found[0].policy) == ("aten", "sequential")
    assert {c.lowering for c in found} == {"aten", "fused", "fused_combo"}
    everywhere = [(program.lowering, QUICK, False) for program in PROGRAMS]
    slow = [(lowering, SLOW_POLICIES, False) for lowering in ("fused", "fused_combo")]  # ATen operators are slow
    assert asked.times == [*everywhere, *slow]


def test_list_schedules_on_fewer_streams_contend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "contenders", asked := Asked(Clock()))
    candidates(BuildOptions((1,)), [BRANCHES])
    assert BRANCHES.graph.width == 3
    assert set(asked.times[0][1]) > {"critical_path", *(f"{name}:2" for name in ("critical_path", "heft", "packed"))}


def choose_by(clock: Clock, options: BuildOptions, device: ScriptedDevice | None = None) -> tuple[Candidate, ...]:
    _, searching, device = search(options, device, clock)
    with device.bind():
        found = searching.choose(PROGRAMS).candidates
    device.close()
    return found


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [(2.0, ["fused", "fused_combo"]), (24.0, ["fused"]), (26.0, [])],
    ids=["time enough", "one takes the time of both", "the quick ones take it all"],
)
def test_slow_policies_are_not_begun_when_half_the_time_is_gone(
    monkeypatch: pytest.MonkeyPatch, seconds: float, slow: list[str]
) -> None:
    """Of 300 s one batch size has 150 to measure in, 75 of them to make schedules in."""
    clock = Clock()
    monkeypatch.setattr(choose, "contenders", asked := Asked(clock, seconds))
    choose_by(clock, BuildOptions((1,)))
    assert [lowering for lowering, policies, _ in asked.times if policies == SLOW_POLICIES] == slow


@pytest.mark.parametrize(("seconds", "stopped"), [(24.0, False), (26.0, True)])
def test_a_search_ends_with_its_part_of_the_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float, stopped: bool
) -> None:
    """A third of 75 s."""
    clock = Clock()
    monkeypatch.setattr(choose, "contenders", asked := Asked(clock, seconds))
    choose_by(clock, BuildOptions((1,), policy="search"))
    assert asked.times == [(program.lowering, ["search"], stopped) for program in PROGRAMS]


def test_what_there_is_no_time_to_profile_is_left_out() -> None:
    clock = Clock()

    class Slow(Gpu):
        def profile(self, program: Program) -> Profile:
            clock.seconds += 40.0
            return super().profile(program)

    found = choose_by(clock, BuildOptions((1,)), Slow())
    assert {candidate.lowering for candidate in found} == {"aten", "fused"}
    assert clock.seconds < 90.0


@pytest.mark.parametrize("budget_s", [0.0, 300.0])
def test_a_budget_that_leaves_no_time_to_measure_is_told_of(budget_s: float, caplog: pytest.LogCaptureFixture) -> None:
    found = choose_by(Clock(), BuildOptions((1,), tuning_budget_s=budget_s))
    measured = [candidate for candidate in found if candidate.measured_us]
    assert measured[0] is found[0]
    if budget_s:
        assert len(measured) == len(found) > 2
        assert not caplog.text
    else:
        assert len(measured) == 2
        assert "made: a tuning budget of 0 s is too short: of " in caplog.text


@pytest.mark.parametrize("measured", [2, 3])
def test_nobody_is_told_of_a_budget_that_leaves_time_for_the_most_promising(
    measured: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def select_some(*given: Any) -> Choice:
        choice = select(*given)
        beyond = [replace(c, measured_us=0.0, rejected=BEYOND_BUDGET) for c in choice.candidates[measured:]]
        return replace(choice, candidates=(*choice.candidates[:measured], *beyond))

    monkeypatch.setattr(choose, "select", select_some)
    choose_by(Clock(), BuildOptions((1,)))
    assert ("is too short" in caplog.text) == (measured == 2)


@pytest.mark.parametrize(
    ("options", "device", "urgent"),
    [
        (BuildOptions((1,)), Gpu, True),
        (BuildOptions((1,), priorities=False), Gpu, False),
        (BuildOptions((1,), policy="nimble"), Gpu, False),
        (BuildOptions((1,)), ScriptedDevice, False),
    ],
    ids=["auto", "not wanted", "named", "a CPU has none"],
)
def test_urgent_streams_contend(options: BuildOptions, device: type[ScriptedDevice], urgent: bool) -> None:
    names = [candidate.policy for candidate in choose_by(Clock(), options, device())]
    of_urgent = [name for name in names if name.startswith("urgent(")]
    assert len(of_urgent) == (URGENT if urgent else 0)
    for name in of_urgent:
        assert names[names.index(name) - 1] == name.removeprefix("urgent(").removesuffix(")")


def test_no_two_candidates_have_the_same_key() -> None:
    found = choose_by(Clock(), BuildOptions((1,)))
    assert len({candidate.key for candidate in found}) == len(found)


def test_a_named_policy_is_tried_on_every_lowering() -> None:
    programs = [BRANCHES, replace(BRANCHES, lowering="fused")]
    found = candidates(BuildOptions((1,), policy="nimble"), programs)
    assert {(c.lowering, c.policy) for c in found} == {
        (lowering, policy) for lowering in ("aten", "fused") for policy in ("sequential", "nimble")
    }


@pytest.mark.parametrize("error", [DeviceError("the driver refuses"), RuntimeError("out of memory")])
def test_a_lowering_that_fails_is_left_out_and_the_simplest_must_not_fail(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Gpu):
        def profile(self, program: Program) -> Profile:
            if program.lowering == failing:
                raise error
            return super().profile(program)

    failing = "fused"
    _, searching, device = search(BuildOptions((1,)), Failing(lambda streams, _replay: 100.0 - streams))
    programs = [BRANCHES, replace(BRANCHES, lowering="fused"), replace(BRANCHES, lowering="fused_combo")]
    with device.bind():
        found = searching.choose(programs).candidates
        assert {candidate.lowering for candidate in found} == {"aten", "fused_combo"}
        assert f"made: the fused lowering fails: {error}" in caplog.text
        failing = "aten"
        with pytest.raises(EngineError, match=str(error)):
            searching.choose(programs)
    device.close()
