"""How signals end a server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable

log = logging.getLogger(__name__)

_SAME_SIGNAL_S = 1.0


def stop_on_signals(stop: Callable[[], None], at_once: Callable[[], None] = lambda: None) -> None:
    """The first SIGTERM or SIGINT calls ``stop``; another one later calls ``at_once`` and ends the process, with 128 +
    its number. What comes within a second is the same: a process group and ``timeout`` tell every process twice.
    On the event loop that is running."""
    loop = asyncio.get_running_loop()
    first: list[float] = []

    def signalled(number: signal.Signals) -> None:
        now = loop.time()
        if not first:
            first.append(now)
            log.info("stopping on %s", number.name)
            stop()
        elif now - first[0] >= _SAME_SIGNAL_S:
            log.warning("ending at once on another %s: what is in flight is lost", number.name)
            at_once()
            os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled, number)
