"""Host memory of others, pinned for CUDA: copies from and to it go at the bus's own speed, beside what else runs."""

from __future__ import annotations

from bisect import bisect_right, insort
from operator import itemgetter

import torch

from opara_server.engine.cuda_streams import checked, runtime

_PINNED: list[tuple[int, int]] = []  # where what is pinned here begins and ends, in order


def pinned(memory: memoryview) -> torch.Tensor | None:
    """``memory`` as bytes, if all of it is pinned by one CudaPin. To ask CUDA takes some ten times as long. On the
    thread that pins."""
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    begin = tensor.data_ptr()
    index = bisect_right(_PINNED, begin, key=itemgetter(0)) - 1
    return tensor if index >= 0 and begin + tensor.nbytes <= _PINNED[index][1] else None


class CudaPin:
    """Memory that is pinned until it is closed. It stays mapped until then."""

    def __init__(self, memory: memoryview) -> None:
        """See engine.device.Pinner."""
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        result = runtime.cudaHostRegister(self._bytes.data_ptr(), self._bytes.nbytes, runtime.cudaHostRegisterPortable)
        if result[0] != runtime.cudaError_t.cudaSuccess:
            runtime.cudaGetLastError()  # forget it, or whoever asks next is told of it
        checked(result)
        insort(_PINNED, self._span)

    @property
    def _span(self) -> tuple[int, int]:
        return self._bytes.data_ptr(), self._bytes.data_ptr() + self._bytes.nbytes

    def close(self) -> None:
        if self._span in _PINNED:
            _PINNED.remove(self._span)
        checked(runtime.cudaHostUnregister(self._bytes.data_ptr()))
        self._bytes = torch.empty(0, dtype=torch.uint8)
