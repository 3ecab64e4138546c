"""Waiting, in a servicer, for what the executor's thread does."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TypeVar

from opara_server.serving.errors import ModelUnavailable

T = TypeVar("T")


async def finished(job: Future[T]) -> T:
    """It goes on where the client does not wait for it. Raises what it raises, ModelUnavailable if the server stops."""
    try:
        return await asyncio.shield(asyncio.wrap_future(job))
    except asyncio.CancelledError:
        if not job.cancelled():
            raise
        raise ModelUnavailable("the server is shutting down") from None
