"""Requests as raw bytes: where their ids and tensors' data lie, without a protobuf object.

The rest of the message, the *key*, is the same in all requests of one client that ask for as many rows of the same
model: what is decided about a key holds for all of them (``forms.py``). A scanner is strict and takes only what clients
send: whatever is odd in a message, if it be legal, makes it None, and protobuf's own parser decides.
Encoding: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from typing import NamedTuple

Span = tuple[int, int]

# Field number and wire type in one byte:
_REQUEST, _TIMEOUT = 0x0A, 0x10  # InferStreamRequest
_MODEL, _ID, _INPUTS, _OUTPUTS = 0x0A, 0x12, 0x1A, 0x22  # InferRequest
_NAME, _DATA_TYPE, _SHAPE, _DATA = 0x0A, 0x10, 0x1A, 0x22  # Tensor
_OIP_ID, _OIP_RAW = 0x1A, 0x3A  # inference.ModelInferRequest
_OIP_KEPT = {0x0A, 0x12, 0x22, 0x2A, 0x32}  # its model_name, model_version, parameters, inputs, outputs


class Cut(NamedTuple):
    """``data``: per tensor, in the message's order, where its bytes are; ``id_at``: where those of the id are."""

    key: bytes
    id: bytes
    data: list[Span]
    id_at: Span


def scan_infer(message: bytes, begin: int, end: int) -> Cut | None:
    """An opara.v1.InferRequest in ``message[begin:end]``."""
    key, kept = [], begin  # the message up to ``kept`` is in the key, or known to be left out of it
    request_id, id_at, data = b"", (begin, begin), []
    at = begin
    try:
        while at < end:
            field, start = message[at], at
            size = message[at + 1]
            at += 2
            if size > 127:
                size, at = _varint(message, at - 1)
            if field == _INPUTS:
                span = _scan_tensor(message, at, at + size)
                if span is None:
                    return None
                data.append(span)
                key.append(message[kept : span[0]])
                kept = span[1]
            elif field == _ID:
                if request_id or not size:
                    return None
                id_at = at, at + size
                request_id = message[at : at + size]
                key.append(message[kept:start])
                kept = at + size
            elif field not in {_MODEL, _OUTPUTS}:
                return None
            at += size
    except IndexError:
        return None
    if at != end or not request_id.isascii():
        return None
    key.append(message[kept:end])
    return Cut(b"".join(key), request_id, data, id_at)


def scan_model_infer(message: bytes) -> Cut | None:
    """An inference.ModelInferRequest. ``data`` is that of its raw_input_contents."""
    key, kept = [], 0
    request_id, id_at, data = b"", (0, 0), []
    at, end = 0, len(message)
    try:
        while at < end:
            field, start = message[at], at
            size = message[at + 1]
            at += 2
            if size > 127:
                size, at = _varint(message, at - 1)
            if field == _OIP_RAW:
                data.append((at, at + size))
                key.append(message[kept:at])
                kept = at + size
            elif field == _OIP_ID:
                if request_id or not size:
                    return None
                id_at = at, at + size
                request_id = message[at : at + size]
                key.append(message[kept:start])
                kept = at + size
            elif field not in _OIP_KEPT:
                return None
            at += size
    except IndexError:
        return None
    if at != end or not request_id.isascii():
        return None
    key.append(message[kept:end])
    return Cut(b"".join(key), request_id, data, id_at)


def scan_streamed(message: bytes) -> tuple[Span, int] | None:
    """An opara.v1.InferStreamRequest: where its request lies, and its timeout_us."""
    try:
        if message[0] != _REQUEST:
            return None
        size, begin = _varint(message, 1)
        end, timeout_us = begin + size, 0
        if end != len(message):
            if message[end] != _TIMEOUT:
                return None
            timeout_us, after = _varint(message, end + 1)
            if after != len(message):
                return None
    except IndexError:
        return None
    return (begin, end), timeout_us


def _scan_tensor(message: bytes, at: int, end: int) -> Span | None:
    data = None
    while at < end:
        field = message[at]
        if field == _DATA_TYPE:
            if message[at + 1] > 127:
                return None
            at += 2
            continue
        size = message[at + 1]
        at += 2
        if size > 127:
            size, at = _varint(message, at - 1)
        if field == _DATA:
            if data is not None:
                return None
            data = at, at + size
        elif field not in {_NAME, _SHAPE}:
            return None
        at += size
    if at != end:
        return None
    return data or (end, end)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, and where it ends. Raises IndexError at the end of the message, and for numbers that are no
    size of a message."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 28:
            raise IndexError("longer than 2 GiB")


def varint(value: int) -> bytes:
    """``value`` >= 0, as protobuf writes it."""
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)
