"""Traces of what serves, every so often: one batch size after the other, spread over the time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from opara_server.serving.errors import ServingError
from opara_server.serving.registry import Registry

log = logging.getLogger(__name__)


async def sample_regularly(
    registry: Registry, every_s: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Each batch size of each model that is READY once in ``every_s`` seconds, until it is cancelled or the executor
    has stopped, which is a cancellation, too."""
    while True:
        sizes = registry.batch_sizes()
        for name, batch_size in sizes:
            await sleep(every_s / len(sizes))
            try:
                await asyncio.wrap_future(registry.profile(name, batch_size))
            except ServingError as error:  # it may have been unloaded meanwhile
                log.info("not traced: %s", error, extra={"model": name, "bucket": batch_size})
        if not sizes:
            await sleep(every_s)
