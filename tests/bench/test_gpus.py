"""Who measures: GPUs of one kind, by the names that child processes know them by."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from bench.gpus import cells_at_once, gpus_for


def machine(monkeypatch: pytest.MonkeyPatch, kinds: Sequence[str], visible: str | None = None) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(kinds))
    monkeypatch.setattr("torch.cuda.get_device_name", kinds.__getitem__)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _gpu: SimpleNamespace(total_memory=80 << 30))


def test_a_processor_is_one_that_needs_no_name() -> None:
    assert gpus_for("cpu", 0) == [""]


@pytest.mark.parametrize(
    ("kinds", "visible", "count", "found"),
    [
        (["H200"] * 4, None, 0, ["0", "1", "2", "3"]),
        (["H200"] * 4, None, 2, ["0", "1"]),
        (["H200", "T4", "H200"], None, 0, ["0", "2"]),
        (["H200", "H200"], "5, GPU-8a", 0, ["5", "GPU-8a"]),
    ],
)
def test_gpus_of_the_first_ones_kind_take_part(
    kinds: list[str], visible: str | None, count: int, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, kinds, visible)
    assert gpus_for("cuda", count) == found


def test_there_are_not_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, ["H200", "T4"])
    with pytest.raises(ValueError, match="2 GPUs: PyTorch sees 1 of a kind"):
        gpus_for("cuda", 2)


@pytest.mark.parametrize(("cores", "gpus", "cells"), [(64, 4, 32), (128, 1, 10), (16, 1, 8), (1, 1, 1)])
def test_cells_compile_where_there_is_room(cores: int, gpus: int, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, ["H200"] * gpus)
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(cores)))
    assert cells_at_once("cuda", gpus) == cells
    assert cells_at_once("cpu", 1) == max(1, cores // 2)
