"""What a result was measured on: goes into every result file."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch


def environment() -> dict[str, str | int]:
    """Processor, versions and date (UTC)."""
    found: dict[str, str | int] = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 0,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties()
        found |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "cuda": str(torch.version.cuda),
            "cudnn": int(torch.backends.cudnn.version() or 0),
        }
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
