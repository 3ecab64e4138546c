"""Host memory of others, pinned for CUDA: copies from and to it go at the bus's own speed, beside what else runs."""

from __future__ import annotations

import torch

from opara_server.engine.cuda_streams import checked, runtime

_PINNED: dict[int, int] = {}  # where what is pinned here begins, and ends


def pinned(memory: memoryview) -> torch.Tensor | None:
    """``memory`` as bytes, if all of it is pinned by one CudaPin. To ask CUDA takes some ten times as long."""
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    begin = tensor.data_ptr()
    end = begin + tensor.nbytes
    for first, last in list(_PINNED.items()):
        if first <= begin and end <= last:
            return tensor
    return None


class CudaPin:
    """Memory that is pinned until it is closed. It stays mapped until then."""

    def __init__(self, memory: memoryview) -> None:
        """See engine.device.Pinner."""
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        result = runtime.cudaHostRegister(self._bytes.data_ptr(), self._bytes.nbytes, runtime.cudaHostRegisterPortable)
        if result[0] != runtime.cudaError_t.cudaSuccess:
            runtime.cudaGetLastError()  # forget it, or whoever asks next is told of it
        checked(result)
        _PINNED[self._bytes.data_ptr()] = self._bytes.data_ptr() + self._bytes.nbytes

    def close(self) -> None:
        _PINNED.pop(self._bytes.data_ptr(), None)
        checked(runtime.cudaHostUnregister(self._bytes.data_ptr()))
        self._bytes = torch.empty(0, dtype=torch.uint8)
