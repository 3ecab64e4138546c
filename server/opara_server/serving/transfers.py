"""Copies between a lane's buffers on the device and the host's memory. All those of a batch are enqueued in one call:
after each call Python would let other threads run first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from opara_server.serving.staging import DeviceRows, HostRows

Direct = tuple[int, torch.Tensor]
"""From which byte of a batch on, and the host's memory that the device reads or writes there by itself."""


@dataclass(slots=True)  # not frozen, as Rows: every batch makes some
class Transfer:
    """The first ``rows`` of one input or output: on the host what is ``direct`` there, all between in ``host``."""

    device: DeviceRows
    host: HostRows
    rows: int
    direct: Sequence[Direct]

    def parts(self) -> tuple[Sequence[torch.Tensor], list[torch.Tensor]]:
        """Bytes on the device and, for each part, the host's."""
        memory, end, at = self.host.memory, self.rows * self.host.row_bytes, 0
        sizes: list[int] = []
        here: list[torch.Tensor] = []
        for start, found in self.direct:
            if at < start:
                sizes.append(start - at)
                here.append(memory[at:start])
            sizes.append(found.nbytes)
            here.append(found)
            at = start + found.nbytes
        if at < end:
            sizes.append(end - at)
            here.append(memory[at:end])
        if not here:
            return (), here
        there = self.device.buffer[:end]
        return (there,) if len(here) == 1 else torch.split_with_sizes(there, sizes), here


def send(transfers: Iterable[Transfer]) -> None:
    """To the device, in the calling thread's current queue."""
    there, here = _joined(transfers)
    _copy(there, here)


def receive(transfers: Iterable[Transfer]) -> None:
    """From the device, likewise."""
    there, here = _joined(transfers)
    _copy(here, there)


def _joined(transfers: Iterable[Transfer]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    there: list[torch.Tensor] = []
    here: list[torch.Tensor] = []
    for transfer in transfers:
        parts = transfer.parts()
        there.extend(parts[0])
        here.extend(parts[1])
    return there, here


def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources, non_blocking=True)
