"""Which of NVML's devices is the one that CUDA runs on: a GPU, or a slice of one (MIG)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any


class NoGpuMetricsError(Exception):
    """Why a GPU that is in use cannot be read."""


@dataclass(frozen=True)
class NvmlDevice:
    """``uuid``: NVML's, ``GPU-...`` or ``MIG-...``; ``handle``: NVML's; ``gpu``: the handle of the whole GPU;
    ``instance``: the number of a slice's GPU instance, None: it is the whole GPU."""

    uuid: str
    handle: Any
    gpu: Any
    instance: int | None = None


def find_device(nvml: ModuleType, uuid: str, visible: str) -> NvmlDevice:
    """``uuid``: ``GPU-`` and what CUDA says, which of a slice may be the slice's or its GPU's, depending on versions;
    ``visible``: CUDA_VISIBLE_DEVICES, which may name the slice (in one of two ways) where CUDA's word does not. Where
    neither does, CUDA runs on the first slice that this process may see. Raises NVMLError, NoGpuMetricsError."""
    first = visible.split(",", maxsplit=1)[0].strip()
    bare = uuid.removeprefix("GPU-")
    for name in (*([first] if first.startswith("MIG-") else []), f"MIG-{bare}"):
        if (found := _by_uuid(nvml, name)) is not None:
            return _slice(nvml, found)
    gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{bare}")
    if not _is_sliced(nvml, gpu):
        return NvmlDevice(f"GPU-{bare}", gpu, gpu)
    found = next(_slices(nvml, gpu), None)
    if found is None:
        raise NoGpuMetricsError("no metrics of the GPU: it is in MIG mode, and none of its slices can be seen")
    return _slice(nvml, found)


def _by_uuid(nvml: ModuleType, uuid: str) -> Any | None:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        return None


def _is_sliced(nvml: ModuleType, gpu: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(gpu)
    except nvml.NVMLError:  # a GPU that cannot be
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _slices(nvml: ModuleType, gpu: Any) -> Iterator[Any]:
    """Handles of those that this process may see, in CUDA's order."""
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        except nvml.NVMLError:  # there is none, or it is another container's
            continue


def _slice(nvml: ModuleType, handle: Any) -> NvmlDevice:
    gpu = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    return NvmlDevice(nvml.nvmlDeviceGetUUID(handle), handle, gpu, nvml.nvmlDeviceGetGpuInstanceId(handle))
