"""CUDA streams that live as long as the process; each has one owner at a time."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import torch

from opara_server.engine.errors import DeviceError

try:
    from cuda.bindings import runtime
except ImportError as error:  # PyTorch's builds for CUDA 13 bring it along
    raise DeviceError("device cuda needs: pip install cuda-bindings") from error

__all__ = ["STREAMS", "StreamStore", "checked", "driver_version", "runtime"]


def checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call of CUDA's runtime returned besides its error code. Raises DeviceError unless that is success."""
    error, *values = result
    if error != runtime.cudaError_t.cudaSuccess:
        raise DeviceError(f"CUDA: {error}")
    return tuple(values)


def driver_version() -> int:
    """The newest CUDA that the driver supports, as 1000 * major + 10 * minor."""
    (version,) = checked(runtime.cudaDriverGetVersion())
    return int(version)


class StreamStore:
    """CUDA streams by GPU and priority, each with one owner at a time. They live as long as the process."""

    def __init__(self) -> None:
        self._spare: dict[tuple[int, bool], list[torch.cuda.ExternalStream]] = defaultdict(list)
        self._lock = threading.Lock()

    def take(self, gpu: int, urgent: bool) -> torch.cuda.ExternalStream:
        with self._lock:
            if self._spare[gpu, urgent]:
                return self._spare[gpu, urgent].pop()
        _, greatest = checked(runtime.cudaDeviceGetStreamPriorityRange())
        priority = greatest if urgent else 0
        (stream,) = checked(runtime.cudaStreamCreateWithPriority(runtime.cudaStreamNonBlocking, priority))
        return torch.cuda.ExternalStream(int(stream), device=gpu)

    def give_back(self, gpu: int, urgent: bool, stream: torch.cuda.ExternalStream) -> None:
        """``stream`` must be idle, and no graph captured on it alive."""
        with self._lock:
            self._spare[gpu, urgent].append(stream)


STREAMS = StreamStore()
