"""The engine's front desk: one thread that takes what workers submit, and sleeps while there is nothing."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable

from opara_server.observe.metrics import Metrics
from opara_server.serving.registry import Registry
from opara_server.workers.catalogue import Catalogue
from opara_server.workers.line import Line

log = logging.getLogger(__name__)


class Desk:
    """``start``, then ``open`` a line per worker, then ``stop``, once no more requests are on their way."""

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self.catalogue = Catalogue(registry, self._flush)
        self._metrics = metrics
        self._pins = registry.pins
        self._thread = threading.Thread(target=self._serve, name="opara-desk", daemon=True)
        self._epoll = select.epoll()
        self._bell = os.eventfd(0)  # rings for the end
        self._epoll.register(self._bell, select.EPOLLIN)
        self._lines: dict[int, Line] = {}  # by the descriptor that is read
        self._stopping = threading.Lock()
        self._lock = threading.Lock()  # of the lines' counts: each is absorbed by one thread at a time
        metrics.on_read(self._absorb)

    def start(self) -> None:
        self._thread.start()

    def open(self, memory: int, submissions: int, completions: int, broken: Callable[[], None]) -> None:
        """Serve another worker, until it ends. The pipes' descriptors are the desk's from now on. ``broken`` is called,
        on the desk's thread, where what it submits cannot be taken: it is hung up on, and should be replaced. Any
        thread."""
        line = Line(memory, submissions, completions, self._pins, broken)
        with self._lock:
            self._lines = self._lines | {submissions: line}
        self._epoll.register(submissions, select.EPOLLIN)

    def stop(self) -> None:
        """Blocks; any thread but the own."""
        with self._stopping:
            if self._epoll.closed:
                return
            if self._thread.is_alive():
                os.eventfd_write(self._bell, 1)
                self._thread.join()
            for line in self._lines.values():
                self._close(line)
            self._epoll.close()
            os.close(self._bell)

    def _serve(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                if descriptor == self._bell:
                    return
                line = self._lines[descriptor]
                try:
                    up = line.take(self.catalogue)
                except Exception:
                    log.exception("a worker's requests could not be taken")
                    line.broken()
                    up = False
                if not up:
                    self._close(line)
                del line  # its memory goes with the last who has it

    def _close(self, line: Line) -> None:
        """Whatever fails in it, the rest of it is done, and others are served on."""
        for part in (self._take_out, self._settle, Line.hang_up):
            try:
                part(line)
            except Exception:
                log.exception("a worker's line could not be closed as it should be")

    def _take_out(self, line: Line) -> None:
        self._epoll.unregister(line.submissions)

    def _settle(self, line: Line) -> None:
        with self._lock:
            self._lines = {descriptor: other for descriptor, other in self._lines.items() if other is not line}
            line.settle(self._metrics, self.catalogue)

    def _flush(self) -> None:
        """Whenever answers have been given. Any thread."""
        for line in self._lines.values():
            line.flush()

    def _absorb(self) -> None:
        with self._lock:
            for line in self._lines.values():
                line.absorb(self._metrics, self.catalogue)
