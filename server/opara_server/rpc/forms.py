"""What is decided once for all requests that differ in nothing but their ids and their tensors' data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from opara_server.engine.spec import TensorSpec
from opara_server.rpc.scan import Cut, varint
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


class Forms:
    """Those of one protocol, by key, as long as the registry's models stay what they are. Not thread-safe."""

    def __init__(self, registry: Models) -> None:
        self._registry = registry
        self._generation = registry.generation
        self._forms: dict[bytes, Form] = {}

    def read(self, message: bytes, cut: Cut | None) -> Request | Rejected | None:
        """``message``, if its form is known. The rows are views of it."""
        form = None if cut is None else self._get(cut.key)
        if cut is None or form is None:
            return None
        view, tensors = memoryview(message), []
        for index in form.order:
            start, stop = cut.data[index]
            tensors.append(view[start:stop])
        if form.bools:
            try:
                check_bools(tensors, form.model.inputs)
            except ServingError as error:
                return Rejected(error, form.model.name, cut.id)
        return Request(form, cut.id, Rows(tuple(tensors), form.count))

    def _get(self, key: bytes) -> Form | None:
        if self._generation != self._registry.generation:
            self._generation = self._registry.generation
            self._forms.clear()
        return self._forms.get(key)

    def keep(self, key: bytes, form: Form) -> None:
        if len(key) > _LONGEST:
            return
        if len(self._forms) >= _MOST:
            self._forms.clear()
        self._forms[key] = form


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
