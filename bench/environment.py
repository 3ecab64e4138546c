"""What a result was measured on: goes into every result file."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import opara_server.engine
from opara_server.version import VERSION


def environment() -> dict[str, str | int]:
    """Processor, versions and date (UTC). ``engine``: a digest of the engine's sources. ``cores``: that this process
    may use."""
    found: dict[str, str | int] = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opara": VERSION,
        "engine": _engine_digest(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties()
        found |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "cuda": str(torch.version.cuda),
            "cudnn": int(torch.backends.cudnn.version() or 0),
            "triton": _version("triton"),
        }
    return found


def _engine_digest() -> str:
    folder = Path(opara_server.engine.__file__).parent
    digest = sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
