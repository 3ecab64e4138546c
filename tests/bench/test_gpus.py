"""Who measures: GPUs of one kind, by the names that child processes know them by."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from bench.gpus import Lane, cells_at_once, gpus_for, lanes_for


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


def test_gpus_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, ["H200"] * 3)
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {7, *range(5), 9})
    assert lanes_for("cuda", 0) == [Lane("0", (0, 1, 2)), Lane("1", (3, 4)), Lane("2", (7, 9))]
    assert lanes_for("cpu", 0) == [Lane("", (0, 1, 2, 3, 4, 7, 9))]
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {0, 1})
    with pytest.raises(ValueError, match="3 GPUs, but 2 processors"):
        lanes_for("cuda", 0)


@pytest.mark.parametrize(("cores", "cells"), [(16, 8), (64, 10), (1, 1)])
def test_cells_compile_where_there_is_room(cores: int, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, ["H200"])
    assert cells_at_once("cuda", cores) == cells
    assert cells_at_once("cpu", cores) == max(1, cores // 2)
