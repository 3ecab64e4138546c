"""Memory that other processes write rows to: pinned, so that a device copies them from where they lie."""

from __future__ import annotations

import logging
from functools import partial

from opara_server.engine.device import Pin, Pinner
from opara_server.engine.errors import DeviceError
from opara_server.serving.executor import Executor
from opara_server.serving.staging import LaneDevice

log = logging.getLogger(__name__)


class Kept:
    """Memory that is pinned, or would be if it could. ``pin``: the executor's."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.pin: Pin | None = None


class Pins:
    """Pinning and unpinning are jobs of the executor, which begin with no batch in the air: no copy is pending then."""

    def __init__(self, executor: Executor) -> None:
        """Before ``start`` of ``executor``, at whose end all is unpinned."""
        self._executor = executor
        self._pinner: Pinner | None = None
        self._refused = False
        self._kept: set[Kept] = set()
        executor.at_end(self._close)

    def use(self, device: LaneDevice) -> None:
        """Models run on it. Executor's thread, once it has no batch in the air."""
        if self._pinner is None:
            self._pinner = device.pinner
            for kept in self._kept:
                self._pin(kept)

    def keep(self, memory: memoryview) -> Kept:
        """Pinned from soon on, where there is a device that gains by it. Any thread."""
        kept = Kept(memory)
        self._executor.run(partial(self._add, kept))
        return kept

    def release(self, kept: Kept) -> None:
        """It is unpinned, and let go, once no copy of it is pending. Whoever could begin another one has lost it. Any
        thread."""
        self._executor.run(partial(self._drop, kept))

    def _add(self, kept: Kept) -> None:
        self._kept.add(kept)
        self._pin(kept)

    def _pin(self, kept: Kept) -> None:
        if self._pinner is None or self._refused:
            return
        try:
            kept.pin = self._pinner(kept.memory)
            log.info("memory shared with a worker is pinned", extra={"bytes": len(kept.memory)})
        except DeviceError as error:
            self._refused = True  # the next one would be, too
            log.warning("memory shared with workers cannot be pinned, so their rows are copied twice: %s", error)

    def _drop(self, kept: Kept) -> None:
        self._kept.discard(kept)
        if kept.pin is not None:
            try:
                kept.pin.close()
            except DeviceError as error:  # a device that is lost: it refuses whatever it is asked
                log.warning("memory shared with a worker cannot be unpinned: %s", error)

    def _close(self) -> None:
        for kept in list(self._kept):
            self._drop(kept)
