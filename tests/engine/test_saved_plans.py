"""Plans that are saved, found again and believed only as far as they are true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

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
    assert len(device.graphs) == 2 * (2 + 2)  # per bucket sequential and the choice are measured, the latter serves,
    # and is measured once more against the former
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


def test_a_damaged_plan_is_measured_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Branches()
    compiled(module, cache_dir=tmp_path).close()
    (file,) = tmp_path.iterdir()
    data = json.loads(file.read_text())
    data["plan"]["buckets"][0].pop("policy")
    file.write_text(json.dumps(data))
    model = compiled(module, cache_dir=tmp_path)
    assert not model.plan.reused
    assert "ignoring the saved plan" in caplog.text
    model.close()


def test_a_saved_plan_that_names_no_policy_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiled(Branches(), cache_dir=tmp_path).close()
    (path,) = tmp_path.glob("*.json")
    saved = json.loads(path.read_text())
    saved["plan"]["buckets"][0]["policy"] = "bogus"
    path.write_text(json.dumps(saved))
    model = compiled(Branches(), cache_dir=tmp_path)
    assert not model.plan.reused
    assert "unknown policy 'bogus'" in caplog.text
    model.close()
