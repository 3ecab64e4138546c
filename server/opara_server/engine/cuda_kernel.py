"""Launches compiled kernels (kernel.py) through CUDA's driver."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from opara_server.engine.errors import DeviceError
from opara_server.engine.kernel import POINTER, KernelCode, KernelLaunch

try:
    from cuda.bindings import driver
except ImportError as error:  # PyTorch's builds for CUDA 13 bring it along
    raise DeviceError("device cuda needs: pip install cuda-bindings") from error

STATIC_SHARED_BYTES = 48 << 10  # more per block must be asked for


C_TYPES: dict[str, type[Any]] = {
    POINTER: ctypes.c_void_p,
    "i1": ctypes.c_int32,
    "i8": ctypes.c_int8,
    "i16": ctypes.c_int16,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "u1": ctypes.c_uint32,
    "u8": ctypes.c_uint8,
    "u16": ctypes.c_uint16,
    "u32": ctypes.c_uint32,
    "u64": ctypes.c_uint64,
    "fp32": ctypes.c_float,
    "fp64": ctypes.c_double,
}
"""As Triton's own launcher passes them."""


def launch(kernel: KernelLaunch, parameters: Sequence[Any]) -> None:
    """On PyTorch's current stream; nothing where the grid is empty. Raises DeviceError where the driver refuses."""
    if 0 in kernel.grid:
        return
    stream = torch.cuda.current_stream()
    values = tuple(_value(parameter) for parameter in parameters)
    types = tuple(C_TYPES[name] for name in kernel.types)
    function = _function(kernel.code, stream.device_index)
    _check(driver.cuLaunchKernelEx(_configuration(kernel, stream), function, (values, types), 0))


def _configuration(kernel: KernelLaunch, stream: torch.cuda.Stream) -> Any:
    configuration = driver.CUlaunchConfig()
    configuration.gridDimX, configuration.gridDimY, configuration.gridDimZ = kernel.grid
    configuration.blockDimX, configuration.blockDimY, configuration.blockDimZ = kernel.code.threads, 1, 1
    configuration.sharedMemBytes = kernel.code.shared_bytes
    configuration.hStream = driver.CUstream(stream.cuda_stream)
    attributes = [_early()] if kernel.early else []
    configuration.attrs, configuration.numAttrs = attributes, len(attributes)
    return configuration


def _early() -> Any:
    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    return attribute


def _value(parameter: Any) -> Any:
    if isinstance(parameter, Tensor):
        return parameter.data_ptr()
    return 0 if parameter is None else parameter


@cache
def _function(code: KernelCode, gpu: int) -> Any:
    """Loaded once per process and GPU, and never unloaded: graphs that were captured with it may be anywhere."""
    with torch.cuda.device(gpu):
        (module,) = _check(driver.cuModuleLoadData(code.cubin))
    (function,) = _check(driver.cuModuleGetFunction(module, code.name.encode()))
    if code.shared_bytes > STATIC_SHARED_BYTES:  # as Triton's own launcher does
        _check(driver.cuFuncSetCacheConfig(function, driver.CUfunc_cache.CU_FUNC_CACHE_PREFER_SHARED))
        most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _check(driver.cuFuncSetAttribute(function, most, code.shared_bytes))
    return function


def _check(result: tuple[Any, ...]) -> tuple[Any, ...]:
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"CUDA: {error}")
    return tuple(values)
