"""What is decided once for all requests that differ in nothing but their ids and their tensors' data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from opara_server.engine.spec import TensorSpec
from opara_server.rpc.scan import Cut, Span, varint
from opara_server.serving.errors import InvalidInput, ServingError
from opara_server.serving.models import Model, Models
from opara_server.serving.rows import Rows

Buffer = bytes | memoryview

_MOST = 1024  # forms that are kept
_LONGEST = 4096  # bytes of a key: a client's request without its data


@dataclass(frozen=True, slots=True)
class Form:
    """``order``: per input of the model which of the request's tensors it is. ``wanted``: which outputs it gets.
    ``head``: the answer's bytes ahead of the id; ``heads``: those ahead of each wanted output's data. ``priority``,
    ``timeout_us``: as Batcher.submit takes them."""

    model: Model
    count: int  # rows
    order: tuple[int, ...]
    wanted: tuple[int, ...]
    bools: bool  # whether an input is of bools, whose values are checked
    head: bytes
    heads: tuple[bytes, ...]
    priority: int = 0
    timeout_us: int = 0


class Request(NamedTuple):
    form: Form
    id: bytes
    rows: Rows


class Rejected(NamedTuple):
    """``model``, ``id``: as the client gave them; empty where that could not be read."""

    error: ServingError
    model: str = ""
    id: bytes = b""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies in messages that differ in nothing but the bytes of their ids and of their tensors' data:
    a scanner reads the others only, ``fixed``, and would cut all such messages alike. ``data``: per input of the
    model."""

    form: Form
    fixed: tuple[tuple[Span, bytes], ...]
    id_at: Span
    data: tuple[Span, ...]


class Forms:
    """Those of one protocol, by key, as long as the registry's models stay what they are. Not thread-safe."""

    def __init__(self, registry: Models) -> None:
        self._registry = registry
        self._generation = registry.generation
        self._forms: dict[bytes, Form] = {}
        self._layouts: dict[Span, Layout] = {}  # one for messages that lie there

    def recall(self, message: bytes, begin: int, end: int) -> Request | Rejected | None:
        """``message[begin:end]``, if one was read that has the same layout. The rows are views of it."""
        self._forget()
        layout = self._layouts.get((begin, end))
        if layout is None:
            return None
        for (start, stop), there in layout.fixed:
            if message[start:stop] != there:
                return None
        start, stop = layout.id_at
        request_id = message[start:stop]
        return _request(message, layout.form, request_id, layout.data) if request_id.isascii() else None

    def read(self, message: bytes, begin: int, end: int, cut: Cut | None) -> Request | Rejected | None:
        """``message[begin:end]``, if its form is known. The rows are views of it."""
        self._forget()
        form = None if cut is None else self._forms.get(cut.key)
        if cut is None or form is None:
            return None
        data = tuple(cut.data[index] for index in form.order)
        if (begin, end) not in self._layouts:
            _make_room(self._layouts)
            self._layouts[begin, end] = Layout(form, _fixed(message, begin, end, cut), cut.id_at, data)
        return _request(message, form, cut.id, data)

    def _forget(self) -> None:
        if self._generation != self._registry.generation:
            self._generation = self._registry.generation
            self._forms.clear()
            self._layouts.clear()

    def keep(self, key: bytes, form: Form) -> None:
        if len(key) > _LONGEST:
            return
        _make_room(self._forms)
        self._forms[key] = form


def _make_room(kept: dict[Any, Any]) -> None:
    if len(kept) >= _MOST:
        kept.clear()


def _fixed(message: bytes, begin: int, end: int, cut: Cut) -> tuple[tuple[Span, bytes], ...]:
    """All between the id's bytes and the data's."""
    starts = (begin, *(stop for _, stop in sorted((cut.id_at, *cut.data))))
    stops = (*(start for start, _ in sorted((cut.id_at, *cut.data))), end)
    return tuple(((start, stop), message[start:stop]) for start, stop in zip(starts, stops, strict=True))


def _request(message: bytes, form: Form, request_id: bytes, data: tuple[Span, ...]) -> Request | Rejected:
    view = memoryview(message)
    tensors = tuple([view[start:stop] for start, stop in data])
    if form.bools:
        try:
            check_bools(tensors, form.model.inputs)
        except ServingError as error:
            return Rejected(error, form.model.name, request_id)
    return Request(form, request_id, Rows(tensors, form.count))


def join_answer(id_tag: bytes, request: Request, outputs: Sequence[Buffer]) -> bytes:
    """The answer's message. ``outputs``: per output of the model as many rows as the request has; they are copied."""
    form = request.form
    parts: list[Buffer] = [form.head]
    if request.id:
        parts += (id_tag, varint(len(request.id)), request.id)
    for head, index in zip(form.heads, form.wanted, strict=True):
        parts += (head, outputs[index])
    return b"".join(parts)


def check_bools(tensors: Sequence[Buffer], inputs: Sequence[TensorSpec]) -> None:
    """Raises InvalidInput."""
    for tensor, spec in zip(tensors, inputs, strict=True):
        if spec.dtype == "bool" and bytes(tensor).translate(None, b"\0\1"):
            raise InvalidInput(f"input {spec.name!r}: a bool is a byte of 0 or 1")
