"""Which GPUs and processors take part, and how many cells may compile at once."""

from __future__ import annotations

import os
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Lane:
    """A GPU, and the processors that work for it and nothing else: what one GPU measures, another's cells that still
    compile do not disturb."""

    gpu: str
    processors: tuple[int, ...]


def lanes_for(device: str, count: int) -> list[Lane]:
    """One per GPU of ``gpus_for``, which see, with equal shares of the processors."""
    gpus, processors = gpus_for(device, count), sorted(os.sched_getaffinity(0))
    each, left = divmod(len(processors), len(gpus))
    if not each:
        raise ValueError(f"{len(gpus)} GPUs, but {len(processors)} processors")
    ends = [each * (number + 1) + min(number + 1, left) for number in range(len(gpus))]
    return [
        Lane(gpu, tuple(processors[begin:end])) for gpu, begin, end in zip(gpus, [0, *ends[:-1]], ends, strict=True)
    ]


def cells_at_once(device: str, processors: int) -> int:
    """As many as these processors and the memory of one GPU have room for."""
    cells = processors // CORES_PER_CELL
    if device == "cuda":
        cells = min(cells, torch.cuda.get_device_properties(0).total_memory // BYTES_PER_CELL)
    return max(1, cells)
