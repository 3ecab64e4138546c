"""A name that several addresses stand for, which may change: what a headless Service's DNS is to clients."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

_A, _IN, _TTL_S = 1, 1, 1
_ANSWERED = 0x8180  # response, recursion desired and available, no error
_QUESTION = 12  # where it begins
_NAME_OF_QUESTION = 0xC00C


class Names(asyncio.DatagramProtocol):
    """Answers every question for IPv4 addresses with ``addresses``, and all others with nothing."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)
        self.address = ""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        host, port = transport.get_extra_info("sockname")
        self.address = f"{host}:{port}"

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._transport.sendto(answer(data, self.addresses), addr)


def answer(query: bytes, addresses: Sequence[str]) -> bytes:
    """To a DNS query of one question (RFC 1035, section 4)."""
    end = query.index(0, _QUESTION) + 5
    (kind,) = struct.unpack_from(">H", query, end - 4)
    found = [socket.inet_aton(address) for address in addresses] if kind == _A else []
    head = struct.pack(">2s5H", query[:2], _ANSWERED, 1, len(found), 0, 0)
    records = [struct.pack(">3HIH", _NAME_OF_QUESTION, _A, _IN, _TTL_S, len(address)) + address for address in found]
    return head + query[_QUESTION:end] + b"".join(records)


@asynccontextmanager
async def named(addresses: Sequence[str]) -> AsyncIterator[Names]:
    """A name server on a free port of the loopback, for any name. gRPC asks it for ``dns://SERVER/name:port``."""
    loop = asyncio.get_running_loop()
    transport, names = await loop.create_datagram_endpoint(lambda: Names(addresses), local_addr=("127.0.0.1", 0))
    try:
        yield names
    finally:
        transport.close()
