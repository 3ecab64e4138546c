"""Plans as JSON, and the store that finds them again only under their whole key."""

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

from opara_server.engine.plan import BucketPlan, Candidate, Plan
from opara_server.engine.plan_store import PlanStore, SavedPlan, as_it_runs, sealed
from opara_server.engine.program_json import Json, content_digest

SEQUENTIAL = Candidate("aten", "sequential", False, 1, 0, 90.0, 100.0, 4096)
OPARA = Candidate("aten", "opara", True, 4, 7, 40.5, 50.0, 6000)
WAVEFRONT = Candidate("aten", "wavefront", False, 9, 20, 45.0, 60.0, 9000)
UNCAPTURED = Candidate("aten", "wavefront", False, 9, 20, 45.0, 0.0, 9000, rejected="cannot be captured")
FUSED = Candidate("fused", "nimble", False, 3, 2, 45.0, 60.0, 6000)
BUCKET = BucketPlan(8, "opara", True, "aten", 12, 4, 5, 33.3, 4, 7, 50.0, 100.0, 6000, (SEQUENTIAL, OPARA, UNCAPTURED))
PLAN = Plan("digits", "cpu", "A processor", (replace(BUCKET, batch_size=1), BUCKET))
CHOICES: dict[str, Any] = {"1": {"simplest": {}, "best": None}}
TENSOR = torch.arange(3, dtype=torch.uint8)
NAME = content_digest(TENSOR)
SAVED = SavedPlan(PLAN, CHOICES, {NAME: TENSOR})
KEY: dict[str, Any] = {"graph": "abc", "buckets": [1, 8], "options": {"tolerance": None}}


def test_round_trip_in_strict_json() -> None:
    text = json.dumps(PLAN.to_json(), allow_nan=False)
    assert Plan.from_json(json.loads(text)) == PLAN


def test_properties() -> None:
    assert (BUCKET.speedup, PLAN.bucket(8), PLAN.reused) == (2.0, BUCKET, False)
    assert BUCKET.memory_ratio == 6000 / 4096
    assert replace(BUCKET, candidates=()).memory_ratio is None
    assert replace(PLAN, buckets=(replace(BUCKET, reused=True),)).reused


def test_a_batch_size_that_is_not_planned() -> None:
    with pytest.raises(KeyError, match="the plan of digits has no batch size 3"):
        PLAN.bucket(3)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "the plan: "),
        ({**PLAN.to_json(), "buckets": []}, "buckets: "),
        ({**PLAN.to_json(), "buckets": [{**PLAN.to_json()["buckets"][0], "policy": 7}]}, "buckets.0.policy: "),
        ({**PLAN.to_json(), "surprise": 1}, "surprise: "),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(data: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}.*$"):
        Plan.from_json(data)


def test_a_saved_plan_is_found_under_its_whole_key(tmp_path: Path) -> None:
    store = PlanStore(tmp_path / "made" / "for it")
    assert store.load("digits", KEY) is None
    store.save(KEY, SAVED)
    found = store.load("digits", dict(reversed(KEY.items())))
    assert found is not None
    assert (found.plan, found.choices) == (PLAN, CHOICES)
    assert found.tensors[NAME].tolist() == [0, 1, 2]
    for other in ({**KEY, "graph": "abd"}, {**KEY, "buckets": [1, 4]}, {**KEY, "options": {"tolerance": 0.1}}, {}):
        assert store.load("digits", other) is None
    assert store.load("letters", KEY) is None


def test_saving_again_replaces_and_leaves_one_file(tmp_path: Path) -> None:
    store = PlanStore(tmp_path)
    store.save(KEY, SAVED)
    later = replace(PLAN, device_name="Another")
    store.save(KEY, replace(SAVED, plan=later))
    found = store.load("digits", KEY)
    assert found is not None
    assert found.plan == later
    assert [path.name for path in tmp_path.iterdir()] == [store.path("digits", KEY).name]


def without(*names: str) -> Callable[[Any], Any]:
    def change(data: Any) -> Any:
        inner = data
        for name in names[:-1]:
            inner = inner[name]
        del inner[int(names[-1]) if isinstance(inner, list) else names[-1]]
        return data

    return change


def put(value: Any, *names: str | int) -> Callable[[Any], Any]:
    def change(data: Any) -> Any:
        inner = data["plan"]
        for name in names[:-1]:
            inner = inner[name]
        inner[names[-1]] = value
        return data

    return change


@pytest.mark.parametrize(
    "damage",
    [
        put([], "buckets"),
        put([PLAN.to_json()["buckets"][0]] * 2, "buckets"),
        put(7, "model"),
        put(None, "fallback_reason"),
        put(7, "buckets", 0, "policy"),
        put("", "buckets", 0, "policy"),
        put(0, "buckets", 0, "batch_size"),
        put(True, "buckets", 0, "batch_size"),
        put(1.5, "buckets", 0, "streams"),
        put("abc", "buckets", 0, "measured_us"),
        put(0.0, "buckets", 0, "measured_us"),
        put(-1.0, "buckets", 1, "sequential_us"),
        put(float("nan"), "buckets", 1, "sequential_us"),
        put(float("inf"), "buckets", 1, "longest_path_us"),
        put("yes", "buckets", 1, "reused"),
        put(1, "buckets", 1, "surprise"),
        put([1], "buckets", 1, "candidates", 0, "policy"),
        put("abc", "buckets", 1, "candidates", 0, "measured_us"),
        put(-5, "buckets", 1, "candidates", 0, "peak_bytes"),
        put(1, "buckets", 1, "candidates", 0, "surprise"),
        put({}, "buckets", 1, "candidates"),
        without("plan"),
        without("key"),
        without("plan", "model"),
        without("plan", "buckets"),
        lambda data: {**data, "plan": {**data["plan"], "surprise": 1}},
        lambda data: {**data, "plan": {**data["plan"], "buckets": [{"batch_size": 1}]}},
        lambda data: {**data, "plan": {**data["plan"], "buckets": [7]}},
        lambda data: {**data, "plan": []},
        lambda data: {**data, "key": {**KEY, "graph": "of another"}},
        lambda _data: {"plan": None},
        lambda data: {**data, "plan": "a plan"},
        without("choices"),
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Any], Any]
) -> None:
    store = PlanStore(tmp_path)
    store.save(KEY, SAVED)
    path = store.path("digits", KEY)
    with safe_open(path, framework="pt") as file:
        data = {name: json.loads(value) for name, value in file.metadata().items() if name != "digest"}
    save_file({}, path, sealed({name: json.dumps(value) for name, value in damage(data).items()}))
    assert store.load("digits", KEY) is None
    assert f"ignoring the saved plan {path.name}" in caplog.text
    store.save(KEY, SAVED)
    assert store.load("digits", KEY) is not None


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    store = PlanStore(tmp_path)
    store.save(KEY, SAVED)
    path = store.path("digits", KEY)
    whole = path.read_bytes()
    padding = len(whole[: 8 + int.from_bytes(whole[:8], "little")].rstrip(b" "))  # spaces behind the metadata
    for at in range(len(whole)):
        for bit in (1, 16):
            content = bytearray(whole)
            content[at] ^= bit
            path.write_bytes(content)
            found = store.load("digits", KEY)
            assert found is None or at >= padding, (at, bytes(content[max(at - 20, 0) : at + 20]))
            if found is not None:
                assert found.plan == PLAN
                assert found.choices == CHOICES


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b'{"key": {"graph"', b"[" * 100_000, bytes([9, 0, 0, 0, 0, 0, 0, 0]) + b"[" * 9],
)
def test_a_broken_file_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    store = PlanStore(tmp_path)
    store.path("digits", KEY).write_bytes(content)
    assert store.load("digits", KEY) is None
    assert "ignoring the saved plan" in caplog.text


def test_a_directory_in_the_plans_place_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = PlanStore(tmp_path)
    (store.path("digits", KEY) / "inside").mkdir(parents=True)
    assert store.load("digits", KEY) is None
    store.save(KEY, SAVED)
    assert "ignoring the saved plan" in caplog.text
    assert "the plan of digits is not saved" in caplog.text
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a directory")
    store = PlanStore(tmp_path / "file" / "cache")
    store.check("digits")
    assert "the plan of digits cannot be saved, so every start searches for it: [Errno" in caplog.text
    store.save(KEY, SAVED)
    assert "the plan of digits is not saved" in caplog.text
    assert store.load("digits", KEY) is None


@pytest.mark.parametrize(
    ("runs", "best", "needed"),
    [
        (OPARA, {"tensor": "a" * 64, "schedule": {}}, "ab"),
        (FUSED, {"tensor": "c" * 64, "schedule": {}}, "bc"),
        (WAVEFRONT, {"tensor": "a" * 64, "schedule": {"streams": 9}}, "ab"),  # of the best's program
        (SEQUENTIAL, None, "b"),
    ],
)
def test_of_what_was_found_only_what_runs_is_written(runs: Candidate, best: Json, needed: str) -> None:
    bucket = replace(BUCKET, candidates=(SEQUENTIAL, OPARA, FUSED, WAVEFRONT))
    choice = {
        "simplest": {"tensor": "b" * 64},
        "best": {"tensor": "a" * 64, "schedule": {}},
        "others": [[2, {"tensor": "c" * 64}], [3, {"schedule": {"streams": 9}}]],
    }
    tensors = {letter * 64: torch.zeros(1, dtype=torch.uint8) for letter in "abcd"}
    found = SavedPlan(replace(PLAN, buckets=(bucket,)), {"8": choice}, tensors)
    changed = replace(bucket, policy=runs.policy, compact=runs.compact, lowering=runs.lowering)
    plan = replace(PLAN, buckets=(changed,))
    saved = as_it_runs(found, plan)
    assert saved.plan == plan
    assert saved.choices == {"8": {"simplest": {"tensor": "b" * 64}, "best": best, "others": []}}
    assert saved.tensors.keys() == {letter * 64 for letter in needed}
