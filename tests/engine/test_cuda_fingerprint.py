"""Every part of what a GPU's saved plans are found by, on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from opara_server.engine import cuda_fingerprint
from opara_server.engine.cuda_fingerprint import fingerprint
from opara_server.engine.tensors import float32_precision, set_float32_precision

H200 = {
    "name": "NVIDIA H200",
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "total_memory": 150 << 30,
}


def told(driver: int = 13000, **others: object) -> dict[str, str]:
    return fingerprint(type("Properties", (), H200 | others)(), driver)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is found as installed: may be changed."""
    versions = {"triton": "3.6.0", "nvidia-cudnn-frontend": "1.18.0"}

    def version(package: str) -> str:
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(metadata, "version", version)
    return versions


@pytest.fixture(autouse=True)
def driver_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "version"
    file.write_text("NVRM version: 580.1\nGCC version: 12\n")
    monkeypatch.setattr(cuda_fingerprint, "DRIVER", file)
    precision = float32_precision()
    yield file
    set_float32_precision(precision)


@pytest.mark.parametrize(
    "other",
    [
        {"name": "NVIDIA H200 MIG 1g.18gb"},
        {"major": 10},
        {"minor": 3},
        {"multi_processor_count": 16},
        {"total_memory": 16 << 30},
        {"driver": 12080},
    ],
    ids=" ".join,
)
def test_another_gpu_has_another_fingerprint(other: dict[str, int]) -> None:
    assert told() == told()
    assert told(**other) != told()


def _tf32_products(_: pytest.MonkeyPatch) -> None:
    torch.backends.cuda.matmul.allow_tf32 = not torch.backends.cuda.matmul.allow_tf32


def _tf32_convolutions(_: pytest.MonkeyPatch) -> None:
    torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.allow_tf32


CHANGES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "torch": lambda patch: patch.setattr(torch, "__version__", "9.0"),
    "cuda": lambda patch: patch.setattr(torch.version, "cuda", "14.0"),
    "cudnn": lambda patch: patch.setattr(torch.backends.cudnn, "version", lambda: 99000),
    "TF32 in products": _tf32_products,
    "TF32 in convolutions": _tf32_convolutions,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_another_pytorch_has_another_fingerprint(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    before = told()
    change(monkeypatch)
    assert told() != before


@pytest.mark.parametrize("package", ["triton", "nvidia-cudnn-frontend"])
def test_another_version_of_a_package_or_its_absence_is_another_fingerprint(
    installed: dict[str, str], package: str
) -> None:
    before = told()
    installed[package] = "99.0"
    other = told()
    del installed[package]
    assert len({str(found) for found in (before, other, told())}) == 3


def test_another_driver_for_the_same_cuda_has_another_fingerprint(driver_file: Path) -> None:
    before = told()
    driver_file.write_text("NVRM version: 590.2\n")
    other = told()
    driver_file.unlink()
    assert len({str(found) for found in (before, other, told())}) == 3
