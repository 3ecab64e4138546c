"""What the supervisor and its children say to each other: JSON objects, and descriptors with them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

_MOST_BYTES = 1 << 16
_MOST_DESCRIPTORS = 8

Told = Callable[[dict[str, Any], Sequence[int]], None]
"""Takes a message, and descriptors that are its own from then on."""


class Control:
    """One end of a socket. Messages come on the event loop that is running; ``send`` is for any thread."""

    def __init__(self, connection: socket.socket, told: Told, over: Callable[[], None]) -> None:
        """``over`` is called once the other process has ended."""
        self._connection = connection
        self._told = told
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection.fileno(), self._readable)

    def send(self, said: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Nobody hears it where the other process has ended."""
        with suppress(OSError):
            socket.send_fds(self._connection, [json.dumps(said).encode()], descriptors)

    def close(self) -> None:
        if self._connection.fileno() >= 0:
            self._loop.remove_reader(self._connection.fileno())
            self._connection.close()

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(
                self._connection, _MOST_BYTES, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            data, descriptors = b"", []
        if data:
            self._told(json.loads(data), descriptors)
            return
        self._loop.remove_reader(self._connection.fileno())
        self._over()


def pair() -> tuple[socket.socket, socket.socket]:
    """Ours and the child's, who inherits it."""
    ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.set_inheritable(childs.fileno(), True)
    return ours, childs
