"""Plans that are saved, found again and believed only as far as they are true."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from opara_server.engine import build
from opara_server.engine.build import compile_model
from opara_server.engine.compiled import EXPORTING
from opara_server.engine.device import CapturedGraph
from opara_server.engine.launch import LaunchList
from opara_server.engine.options import BuildOptions
from opara_server.engine.plan_store import sealed
from opara_server.engine.program import Program
from opara_server.engine.program_json import content_digest
from tests.engine.compiling import TWO_BUCKETS, assert_right, compiled, on_several_streams, streams_are_fast
from tests.engine.devices import ScriptedDevice, nothing
from tests.engine.models import ROW, Branches


def test_a_saved_plan_is_reused_and_keeps_all_measurements(tmp_path: Path) -> None:
    module = Branches()
    first = compiled(module, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    saved = file.read_bytes()
    device = ScriptedDevice(lambda streams, replay: 2 * streams_are_fast(streams, replay))  # has other work beside
    second = compiled(module, cache_dir=tmp_path, device=device)
    assert (first.plan.reused, second.plan.reused) == (False, True)
    assert file.read_bytes() == saved
    for before, after in zip(first.plan.buckets, second.plan.buckets, strict=True):
        assert after.reused
        assert after.sequential_us == before.sequential_us  # of a search that had the device to itself
        assert after.measured_us == pytest.approx(2 * before.measured_us)
        assert (after.policy, after.compact) == (before.policy, before.compact)
        assert {(c.policy, c.compact) for c in after.candidates} >= {(c.policy, c.compact) for c in before.candidates}
    assert len(device.graphs) == 2 * 2  # per bucket the choice, which serves, and sequential, to time it against
    assert_right(second, module)
    for model in (first, second):
        model.close()


def test_that_a_plan_cannot_be_saved_is_told_before_the_search(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    options = replace(TWO_BUCKETS, cache_dir=tmp_path / "file")
    told: dict[str, str] = {}

    def progress(what: str, _share: float) -> None:
        told.setdefault(what, caplog.text)

    compile_model("small", Branches().eval(), ROW, ScriptedDevice(streams_are_fast), options, progress).close()
    assert "the plan of small cannot be saved" in told[EXPORTING]


def quick(folder: Path) -> dict[str, Any]:
    """To be compiled in no time, with a plan that is kept."""
    return {"cache_dir": folder, "policy": "nimble"}


class Changed(ScriptedDevice):
    """The first graph of several streams is not what it was when the plan was saved."""

    def __init__(self, refuses: bool) -> None:
        super().__init__(streams_are_fast)
        self._refuses = refuses
        self._met = False

    def capture(self, program: Program, launches: LaunchList, *, passing: bool = False) -> CapturedGraph:
        met_before, self._met = self._met, self._met or launches.streams > 1
        changes = self._met and not met_before
        self.refused = [launches.streams] if changes and self._refuses else []
        self.spoil = on_several_streams if changes else lambda _streams: nothing
        return super().capture(program, launches, passing=passing)


@pytest.mark.parametrize("refuses", [False, True], ids=["wrong numbers", "cannot be captured"])
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_a_saved_plan_that_runs_no_more_is_searched_for_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, refuses: bool, behind: bool
) -> None:
    module, options = Branches(), quick(tmp_path)
    compiled(module, **options).close()
    model = compiled(module, **options, device=Changed(refuses), tune_behind=behind)
    (warned,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "ignoring the saved plan of small: " in warned
    assert ("streams are too many" if refuses else "error") in warned
    assert not any(bucket.reused for bucket in model.plan.buckets)
    assert (model.behind is not None) == behind
    parallel = [bucket.streams > 1 for bucket in model.plan.buckets]
    assert parallel == [not behind] * 2
    assert_right(model, module)
    model.close()
    assert compiled(module, **options).plan.reused


def test_a_saved_plan_that_is_slow_today_waits_for_a_better_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, options = Branches(), quick(tmp_path)
    compiled(module, **options).close()
    (file,) = tmp_path.iterdir()
    saved = file.read_bytes()
    model = compiled(module, **options, device=ScriptedDevice(lambda streams, _replay: 100.0 * streams))
    assert [bucket.policy for bucket in model.plan.buckets] == ["sequential"] * 2
    assert caplog.text.count("is slower than sequential") == 2
    model.close()
    assert file.read_bytes() == saved
    model = compiled(module, **options)
    assert all(bucket.streams > 1 for bucket in model.plan.buckets)
    model.close()


DEFAULT = BuildOptions((2,), policy="nimble")
OTHER_OPTIONS: dict[str, Any] = {
    "batch_sizes": (2, 3),
    "policy": "opara",
    "lowering": "aten",
    "tuning_budget_s": 3.0,
    "channels_last": not DEFAULT.channels_last,
    "priorities": not DEFAULT.priorities,
    "tolerance": 1e-3,
}


def other_weights() -> nn.Module:
    module = Branches()
    with torch.no_grad():
        next(module.parameters())[0, 0] += 1e-6
    return module


def unaligned_weights() -> nn.Module:
    """The same as Branches', elsewhere in memory."""
    module = Branches()
    weight = next(module.parameters())
    flat = torch.empty(1 + weight.numel())
    weight.data = flat[1:].view_as(weight).copy_(weight.data)
    return module


class Negated(Branches):
    """The same weights, and another call."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class Hasty(Branches):
    """Makes a call more for some inputs, which an export does not see."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and bool(x[0, 0] > 0):
            x = x.clone()
        result: Tensor = super().forward(x)
        return result


def test_the_key_does_not_depend_on_chance(tmp_path: Path) -> None:
    module, options = Hasty(), quick(tmp_path)
    compiled(module, **options).close()
    for _ in range(4):
        model = compiled(module, **options)
        assert model.plan.reused
        model.close()


@pytest.mark.parametrize(
    "other",
    [
        {"module": other_weights()},
        {"module": unaligned_weights()},
        {"module": Branches(3)},
        {"module": Negated()},
        {"module": Branches().double(), "specs": (replace(ROW[0], dtype="float64"),)},
        {"specs": (replace(ROW[0], low=0.0, high=1.0),)},
        {"specs": (replace(ROW[0], name="y"),)},
        *({name: value} for name, value in OTHER_OPTIONS.items()),
    ],
    ids=" ".join,
)
def test_another_model_or_other_options_are_another_plan(tmp_path: Path, other: dict[str, Any]) -> None:
    one: dict[str, Any] = {"module": Branches(), "batch_sizes": DEFAULT.batch_sizes, "policy": DEFAULT.policy}
    for number, given in enumerate((one, one | other)):
        model = compiled(**given, cache_dir=tmp_path)
        assert not model.plan.reused
        assert len(list(tmp_path.iterdir())) == number + 1
        model.close()


@pytest.mark.parametrize(("name", "value"), [("VERSION", "99"), ("PLAN_FORMAT", 99), ("sources_digest", lambda: "99")])
def test_another_engine_makes_another_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    module, options = Branches(), quick(tmp_path)
    compiled(module, **options).close()
    monkeypatch.setattr(build, name, value)
    assert not compiled(module, **options).plan.reused
    assert len(list(tmp_path.iterdir())) == 2


def test_another_device_has_another_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is that its fingerprint tells; tests/engine/test_cuda_fingerprint.py: what a GPU's tells."""
    module, options = Branches(), quick(tmp_path)
    compiled(module, **options).close()
    monkeypatch.setattr(ScriptedDevice, "fingerprint", lambda _device: {"gpu": "another"})
    assert not compiled(module, **options).plan.reused
    assert len(list(tmp_path.iterdir())) == 2


def test_options_that_no_measurement_depends_on_make_no_other_plan(tmp_path: Path) -> None:
    module, options = Branches(), quick(tmp_path)
    compiled(module, **options, batch_sizes=(1, 4)).close()
    model = compiled(module, **options, batch_sizes=(4, 1), tune_behind=True)
    assert model.plan.reused
    model.close()
    assert {field.name for field in fields(BuildOptions)} == {*OTHER_OPTIONS, "tune_behind", "cache_dir"}


def change(file: Path, name: str, damage: Callable[[Any], None]) -> None:
    """Damage what a saved plan says in ``name``."""
    with safe_open(file, framework="pt") as saved:
        metadata = saved.metadata()
        tensors = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118
    data = json.loads(metadata[name])
    damage(data)
    save_file(tensors, file, sealed({**metadata, name: json.dumps(data)}))


def forget_a_wait(choices: Any) -> None:
    steps = choices["4"]["best"]["schedule"]["steps"]
    for step in steps:
        step[2] = []


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("plan", lambda plan: plan["buckets"][0].pop("policy")),
        ("plan", lambda plan: plan["buckets"][0].update(policy="bogus")),
        ("plan", lambda plan: plan["buckets"].pop()),
        ("choices", lambda choices: choices.pop("4")),
        ("choices", lambda choices: choices["4"].update(best=None)),
        ("choices", lambda choices: choices["4"]["simplest"].pop("program")),
        ("choices", lambda choices: choices["4"]["simplest"].update(durations=[])),
        ("choices", lambda choices: choices["4"]["best"]["program"]["bodies"][0][0]["target"].update(operator="a.b.c")),
        ("choices", lambda choices: choices["4"]["best"]["program"]["graph"].update(predecessors=[])),
        ("choices", lambda choices: choices["4"]["best"]["program"].update(inputs=[])),
        ("choices", forget_a_wait),
    ],
)
def test_a_damaged_plan_is_measured_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Any], None]
) -> None:
    module, options = Branches(), quick(tmp_path)
    compiled(module, **options).close()
    (file,) = tmp_path.iterdir()
    change(file, name, damage)
    model = compiled(module, **options)
    assert not model.plan.reused
    assert "ignoring the saved plan" in caplog.text
    assert_right(model, module)
    model.close()
    assert compiled(module, **options).plan.reused  # the good one has replaced it


class Folds(nn.Module):
    """Computes with a weight that it computes from another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight.exp()) + x @ (self.weight.exp() / 3)


def test_what_was_computed_from_weights_is_not_computed_again(tmp_path: Path) -> None:
    module = Folds()
    compiled(module, cache_dir=tmp_path).close()
    (file,) = tmp_path.iterdir()
    with safe_open(file, framework="pt") as saved:
        assert len(saved.keys()) == 2
    model = compiled(module, cache_dir=tmp_path)
    assert model.plan.reused
    assert_right(model, module)
    model.close()


def test_a_saved_plan_whose_numbers_are_wrong_is_measured_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Folds()
    compiled(module, cache_dir=tmp_path).close()
    (file,) = tmp_path.iterdir()
    with safe_open(file, framework="pt") as saved:
        metadata = saved.metadata()
        tensors = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118
    zeros = torch.zeros_like(next(iter(tensors.values())))
    for name in tensors:
        metadata["choices"] = metadata["choices"].replace(name, content_digest(zeros))
    save_file({content_digest(zeros): zeros}, file, sealed(metadata))
    model = compiled(module, cache_dir=tmp_path)
    assert "ignoring the saved plan" in caplog.text
    assert not model.plan.reused
    assert_right(model, module)
    model.close()
    assert compiled(module, cache_dir=tmp_path).plan.reused
