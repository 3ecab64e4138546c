"""Plans that are saved, found again and believed only as far as they are true."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from opara_server.engine.program_json import content_digest
from tests.engine.compiling import assert_right, compiled, on_several_streams, streams_are_fast
from tests.engine.devices import ScriptedDevice
from tests.engine.models import ROW, Branches


def test_a_saved_plan_is_reused_and_keeps_all_measurements(tmp_path: Path) -> None:
    module = Branches()
    first = compiled(module, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    saved = file.read_bytes()
    device = ScriptedDevice(streams_are_fast)
    second = compiled(module, cache_dir=tmp_path, device=device)
    assert (first.plan.reused, second.plan.reused) == (False, True)
    assert file.read_bytes() == saved
    for before, after in zip(first.plan.buckets, second.plan.buckets, strict=True):
        assert after.reused
        assert (after.policy, after.compact) == (before.policy, before.compact)
        assert {(c.policy, c.compact) for c in after.candidates} >= {(c.policy, c.compact) for c in before.candidates}
    assert len(device.graphs) == 2 * 2  # per bucket the choice, which serves, and sequential, to time it against
    assert_right(second, module)
    for model in (first, second):
        model.close()


def test_a_reused_plan_is_verified_again(tmp_path: Path) -> None:
    module = Branches()
    compiled(module, cache_dir=tmp_path).close()
    model = compiled(module, cache_dir=tmp_path, device=ScriptedDevice(streams_are_fast, spoil=on_several_streams))
    assert [bucket.policy for bucket in model.plan.buckets] == ["sequential"] * 2
    model.close()


def test_other_conditions_other_plans(tmp_path: Path) -> None:
    other_weights = Branches()
    with torch.no_grad():
        next(other_weights.parameters())[0, 0] += 1e-6
    one: dict[str, Any] = {"batch_sizes": (2,), "policy": "nimble"}
    variants: list[tuple[nn.Module, dict[str, Any]]] = [
        (Branches(), one),
        (other_weights, one),
        (Branches(3), one),
        (Branches(), one | {"batch_sizes": (2, 3)}),
        (Branches(), one | {"policy": "opara"}),
        (Branches(), one | {"tolerance": 1e-3}),
        (Branches(), one | {"channels_last": True}),
        (Branches(), one | {"specs": (replace(ROW[0], low=0.0, high=1.0),)}),
    ]
    for number, (module, options) in enumerate(variants):
        model = compiled(module, cache_dir=tmp_path, **options)
        assert not model.plan.reused
        assert len(list(tmp_path.iterdir())) == number + 1
        model.close()


def change(file: Path, name: str, damage: Callable[[Any], None]) -> None:
    """Damage what a saved plan says in ``name``."""
    with safe_open(file, framework="pt") as saved:
        metadata = saved.metadata()
        tensors = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118
    data = json.loads(metadata[name])
    damage(data)
    save_file(tensors, file, {**metadata, name: json.dumps(data)})


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
    module = Branches()
    compiled(module, cache_dir=tmp_path).close()
    (file,) = tmp_path.iterdir()
    change(file, name, damage)
    model = compiled(module, cache_dir=tmp_path)
    assert not model.plan.reused
    assert "ignoring the saved plan" in caplog.text
    assert_right(model, module)
    model.close()
    assert compiled(module, cache_dir=tmp_path).plan.reused  # the good one has replaced it


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
    save_file({content_digest(zeros): zeros}, file, metadata)
    model = compiled(module, cache_dir=tmp_path)
    assert "ignoring the saved plan" in caplog.text
    assert not model.plan.reused
    assert_right(model, module)
    model.close()
    assert compiled(module, cache_dir=tmp_path).plan.reused
