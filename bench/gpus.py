"""Which GPUs take part, and how many cells may compile at once."""

from __future__ import annotations

import os

import torch

CORES_PER_CELL = 2  # this engine compiles in a process of its own, beside the others of its cell
BYTES_PER_CELL = 8 << 30  # of GPU memory: two processes, weights several times, graphs


def gpus_for(device: str, count: int) -> list[str]:
    """``count`` GPUs like the first (0: all of these), each as CUDA_VISIBLE_DEVICES names it; for a CPU one without a
    name.

    Raises ValueError where there are not so many.
    """
    if device != "cuda":
        return [""]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    found = range(torch.cuda.device_count())
    names = visible.split(",")[: len(found)] if visible else [str(number) for number in found]
    alike = [n for n in found if torch.cuda.get_device_name(n) == torch.cuda.get_device_name(0)]
    if count > len(alike):
        raise ValueError(f"{count} GPUs: PyTorch sees {len(alike)} of a kind")
    return [names[number].strip() for number in alike[: count or None]]


def cells_at_once(device: str, gpus: int) -> int:
    """As many as processors and GPU memory have room for."""
    cells = processors() // CORES_PER_CELL
    if device == "cuda":
        cells = min(cells, gpus * torch.cuda.get_device_properties(0).total_memory // BYTES_PER_CELL)
    return max(1, cells)


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))
