"""A bucket's search: which programs and policies contend, within the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opara_server.engine import choose
from opara_server.engine.choose import Search
from opara_server.engine.errors import DeviceError, EngineError
from opara_server.engine.lowerings import Lowerings
from opara_server.engine.options import FUSED, BuildOptions
from opara_server.engine.plan import Candidate
from opara_server.engine.policies import SLOW_POLICIES
from opara_server.engine.profile import OperatorProfile, Profile, Roofline
from opara_server.engine.program import Program
from opara_server.engine.select import Contender, contenders
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


def search(options: BuildOptions, device: ScriptedDevice | None = None) -> tuple[Made, Search, ScriptedDevice]:
    made, device = Made(), device or Gpu(lambda streams, _replay: 100.0 - streams)
    return made, Search(made, device, options, in_turn=1), device


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


def test_slow_policies_work_on_the_most_promising_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(program: Program, profile: Profile, policies: Sequence[str], *rest: Any) -> list[Contender]:
        asked.append((program.lowering, policies))
        return contenders(program, profile, policies, *rest)

    monkeypatch.setattr(choose, "contenders", noted)
    programs = [BRANCHES, replace(BRANCHES, lowering="fused"), replace(BRANCHES, lowering="fused_combo")]
    found = candidates(BuildOptions((1,)), programs)
    assert (found[0].lowering, found[0].policy) == ("aten", "sequential")
    assert {c.lowering for c in found} == {"aten", "fused", "fused_combo"}
    everywhere = [(program.lowering, choose.QUICK_POLICIES) for program in programs]
    assert asked == [*everywhere, ("fused", SLOW_POLICIES), ("fused_combo", SLOW_POLICIES)]  # ATen operators are slow


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
        assert f"the fused lowering fails: {error}" in caplog.text
        failing = "aten"
        with pytest.raises(EngineError, match=str(error)):
            searching.choose(programs)
    device.close()
