"""Messages between a worker and the engine, beside the requests: a JSON object and bytes, either way."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from struct import Struct
from typing import Any

_HEAD = Struct("<II")  # bytes of the JSON and of what follows it
_BUFFER = 1 << 20

Message = tuple[dict[str, Any], bytes]


class Messages:
    """One end of a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, descriptor: int) -> Messages:
        """It owns ``descriptor``."""
        reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=descriptor), limit=_BUFFER)
        return cls(reader, writer)

    def send(self, said: Mapping[str, Any], payload: bytes = b"") -> None:
        """Never blocks. Nobody hears it where the other end is closed."""
        text = json.dumps(said).encode()
        self._writer.write(_HEAD.pack(len(text), len(payload)) + text + payload)

    async def received(self) -> AsyncIterator[Message]:
        """All that comes, until the other end is closed."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size, more = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
                said: dict[str, Any] = json.loads(await self._reader.readexactly(size))
                yield said, await self._reader.readexactly(more)

    def close(self) -> None:
        self._writer.close()
