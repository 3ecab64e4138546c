"""The engine's models as workers know them: by number, with all that a request's way needs of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from opara_server.engine.spec import TensorSpec
from opara_server.serving.errors import ServingError
from opara_server.serving.models import ModelState, ServedModel
from opara_server.serving.registry import Registry
from opara_server.workers.counting import MOST_ROWS


@dataclass(frozen=True, slots=True)
class Offer:
    """``row_bytes``: of each input. ``row_bytes_out``: of each output. ``bytes_each``: of a row's inputs or outputs,
    whichever are more."""

    served: ServedModel
    row_bytes: tuple[int, ...]
    row_bytes_out: tuple[int, ...]
    bytes_each: int


class Catalogue:
    """A number means one loading of a model. Once the model is loaded anew, requests that come with an old number go to
    the new one where it takes and gives the same, or the last ones on their way would be lost. Any thread."""

    def __init__(self, registry: Registry, delivered: Callable[[], None]) -> None:
        """``delivered``: see Batcher."""
        self._registry = registry
        self._delivered = delivered
        self._lock = threading.Lock()
        self._generation = -1
        self._offers: list[Offer] = []  # by number
        self._numbers: dict[str, int] = {}  # the newest of each model
        self._rows: dict[str, int] = {}

    def offers(self) -> list[Offer]:
        """By number."""
        if self._generation != self._registry.generation:
            self._refresh()
        return self._offers

    def rows(self) -> Mapping[str, int]:
        """The rows in which each model's requests are counted."""
        self.offers()
        return self._rows

    def describe(self) -> dict[str, Any]:
        """As JSON, what ``models.Mirror.update`` takes."""
        self.offers()
        return {"models": {name: self._described(name, state) for name, state in self._registry.models()}}

    def _described(self, name: str, state: ModelState) -> dict[str, Any]:
        known: dict[str, Any] = {"state": state, "row": self._rows.get(name, 0)}
        number = self._numbers.get(name)
        if state is ModelState.READY and number is not None:
            served = self._offers[number].served
            known |= {
                "number": number,
                "inputs": [_as_json(spec) for spec in served.inputs],
                "outputs": [_as_json(spec) for spec in served.outputs],
                "max_rows": served.max_rows,
            }
        return known

    def _refresh(self) -> None:
        with self._lock:
            generation = self._registry.generation  # before looking: what changes meanwhile is seen the next time
            for name, state in self._registry.models():
                if len(self._rows) + 1 < MOST_ROWS:
                    self._rows.setdefault(name, len(self._rows) + 1)
                if state is ModelState.READY:
                    self._offer(name)
            self._generation = generation

    def _offer(self, name: str) -> None:
        try:
            served = self._registry.get(name)
        except ServingError:  # no longer
            return
        number = self._numbers.get(name)
        if number is not None and self._offers[number].served.batcher is served.batcher:
            return
        served.batcher.delivered = self._delivered
        taken, given = (tuple(spec.row_bytes for spec in specs) for specs in (served.inputs, served.outputs))
        offer = Offer(served, taken, given, max(sum(taken), sum(given)))
        for older, before in enumerate(self._offers):
            if before.served.name == name and _alike(before.served, served):
                self._offers[older] = offer
        self._numbers[name] = len(self._offers)
        self._offers.append(offer)


def _alike(one: ServedModel, other: ServedModel) -> bool:
    return (one.inputs, one.outputs) == (other.inputs, other.outputs)


def _as_json(spec: TensorSpec) -> list[Any]:
    return [spec.name, spec.dtype, spec.shape, spec.low, spec.high]
