"""The engine's models, as a worker sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opara_server.engine.spec import TensorSpec
from opara_server.serving.errors import ModelUnavailable
from opara_server.serving.models import ModelState, not_found, not_ready
from opara_server.workers.caller import ENGINE_GONE, Caller, RemoteQueue


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """One that is READY; ``batcher`` is the way to it."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_rows: int
    batcher: RemoteQueue


class Mirror:
    """Queries are for any thread; changes come from one."""

    def __init__(self) -> None:
        self.generation = 0
        self._known: Mapping[str, RemoteModel | ModelState] | None = None

    def get(self, name: str) -> RemoteModel:
        """Raises ModelNotFound, or ModelUnavailable unless the model is READY."""
        if self._known is None:
            raise ModelUnavailable(ENGINE_GONE)
        known = self._known.get(name)
        if known is None:
            not_found(name)
        if isinstance(known, ModelState):
            not_ready(name, known)
        return known

    def update(self, models: Mapping[str, Any], caller: Caller) -> None:
        """``models``: as Catalogue.describe has them."""
        self._known = {name: _model(name, model, caller) for name, model in models.items()}
        self.generation += 1

    def lose(self) -> None:
        """The engine is gone."""
        self._known = None
        self.generation += 1


def _model(name: str, known: Mapping[str, Any], caller: Caller) -> RemoteModel | ModelState:
    if "number" not in known:
        return ModelState(known["state"])
    inputs, outputs = (
        tuple(TensorSpec(n, dtype, tuple(shape), low, high) for n, dtype, shape, low, high in known[side])
        for side in ("inputs", "outputs")
    )
    bytes_in, bytes_out = (sum(spec.row_bytes for spec in specs) for specs in (inputs, outputs))
    row_bytes_out = tuple(spec.row_bytes for spec in outputs)
    queue = RemoteQueue(caller, known["number"], bytes_in, row_bytes_out, max(bytes_in, bytes_out))
    return RemoteModel(name, inputs, outputs, known["max_rows"], queue)
