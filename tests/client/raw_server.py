"""A real gRPC server whose methods are functions of bytes, and protobuf's wire format by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self

import grpc

Method = Callable[[bytes, grpc.ServicerContext], bytes]
Fields = dict[int, list[int | bytes]]


class RawServer:
    """``methods``: by full name. ``calls``: the requests of each, in the order of their arrival."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self.calls: dict[str, list[bytes]] = {name: [] for name in methods}
        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool)
        for name, method in methods.items():
            _, service, rpc = name.split("/")
            handlers = {rpc: grpc.unary_unary_rpc_method_handler(partial(self._answer, name, method))}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def _answer(self, name: str, method: Method, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls[name].append(request)
        return method(request, context)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    groups = []
    while value > 0x7F:
        groups.append(0x80 | value & 0x7F)
        value >>= 7
    return bytes([*groups, value])


def field(number: int, data: bytes | str) -> bytes:
    payload = data.encode() if isinstance(data, str) else data
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def packed(values: Sequence[int]) -> bytes:
    return b"".join(map(varint, values))


def parse(message: bytes) -> Fields:
    """The values of each field: whole numbers, and everything else as bytes."""
    fields: Fields = {}
    at = 0

    def number() -> int:
        nonlocal at
        start = at
        while message[at] & 0x80:
            at += 1
        at += 1
        return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(message[start:at]))

    while at < len(message):
        key = number()
        value: int | bytes = number()
        if key & 7 == 2:
            assert isinstance(value, int)
            at += value
            value = message[at - value : at]
        else:
            assert key & 7 == 0
        fields.setdefault(key >> 3, []).append(value)
    return fields


def unpacked(data: int | bytes) -> list[int]:
    assert isinstance(data, bytes)
    found, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            found.append(value)
            value = shift = 0
    return found
