"""What of a GPU and of the software that drives it a measurement, and a kernel compiled for it, depend on."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Protocol

import torch

from opara_server.engine.tensors import float32_precision

DRIVER = Path("/proc/driver/nvidia/version")
PACKAGES = {"triton": "triton", "cudnn_frontend": "nvidia-cudnn-frontend"}  # as pip calls them


class Properties(Protocol):
    """``torch.cuda.get_device_properties``'s. A MIG slice differs from its GPU in processors and memory (bytes)."""

    name: str
    major: int
    minor: int
    multi_processor_count: int
    total_memory: int


def fingerprint(gpu: Properties, driver: int) -> dict[str, str]:
    """``driver``: the newest CUDA that it supports. Packages that are not installed are told, too: plans can come with
    them that nobody else could run."""
    return {
        "gpu": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": str(gpu.multi_processor_count),
        "memory": str(gpu.total_memory),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        **{name: _version(package) for name, package in PACKAGES.items()},
        "driver": f"{driver} {_driver()}",
        "float32": " ".join(float32_precision()),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _driver() -> str:
    """The driver's own version, which CUDA does not tell; empty where Linux does not."""
    try:
        return DRIVER.read_text().splitlines()[0]
    except OSError:
        return ""
