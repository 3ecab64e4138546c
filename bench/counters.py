"""How busy the multiprocessors of a GPU are, by NVML's GPM counters (Hopper and later, no privileges needed).

The classic utilisation that `nvidia-smi` shows counts the time in which any kernel runs at all: 90 % and more where the
multiprocessors are idle for most of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from opara_server.observe.gpu import gpm_shares


class NoCountersError(Exception):
    """Why the counters cannot be read."""


@dataclass(frozen=True)
class Load:
    """Shares (0..1): of multiprocessors with work, and of warps that could be resident."""

    sm_utilisation: float
    sm_occupancy: float


@dataclass(frozen=True)
class Counters:
    """Of one GPU. ``nvml``: the module pynvml; ``handle``: the GPU in it."""

    nvml: ModuleType
    handle: Any

    def over(self, work: Callable[[], object]) -> Load:
        """The means while ``work`` runs, which must keep the GPU busy for 0.1 s or more. Raises NoCountersError."""
        nvml = self.nvml
        before, after = nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()
        try:
            nvml.nvmlGpmSampleGet(self.handle, before)
            work()
            nvml.nvmlGpmSampleGet(self.handle, after)
            wanted = (nvml.NVML_GPM_METRIC_SM_UTIL, nvml.NVML_GPM_METRIC_SM_OCCUPANCY)
            utilisation, occupancy = gpm_shares(nvml, before, after, wanted)
            if utilisation is None or occupancy is None:
                raise NoCountersError("no GPM counters: NVML has no value for them")
            return Load(utilisation, occupancy)
        except nvml.NVMLError as error:
            raise NoCountersError(f"no GPM counters: {error}") from error
        finally:
            nvml.nvmlGpmSampleFree(before)
            nvml.nvmlGpmSampleFree(after)


def open_counters() -> Counters:
    """Of the current GPU. Raises NoCountersError where it has none, or the package nvidia-ml-py is missing."""
    try:
        import pynvml  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise NoCountersError("GPM counters need: pip install 'opara-serve[bench]'") from error
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        supported = bool(pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
    except pynvml.NVMLError as error:
        raise NoCountersError(f"no GPM counters: {error}") from error
    if not supported:
        raise NoCountersError("no GPM counters: this GPU has none")
    return Counters(pynvml, handle)
