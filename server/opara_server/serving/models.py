"""What the rest of the server knows of a model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn, Protocol

from opara_server.engine.plan import Plan
from opara_server.engine.spec import TensorSpec
from opara_server.observe.tracing import SpanContext
from opara_server.serving.batcher import Batcher
from opara_server.serving.errors import ModelNotFound, ModelUnavailable
from opara_server.serving.rows import Rows
from opara_server.serving.ticket import Done


class ModelState(StrEnum):
    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"
    UNLOADED = "UNLOADED"


class Cancellable(Protocol):
    def cancel(self) -> None:
        """Have done(Cancelled()) called, unless it is answered already."""
        ...


class Queue(Protocol):
    """Takes requests: a Batcher in this process, or the way to one in another."""

    def submit(
        self,
        rows: Rows,
        deadline: float | None,
        done: Done,
        *,
        priority: int = 0,
        timeout_us: int = 0,
        span: SpanContext | None = None,
    ) -> Cancellable:
        """As Batcher.submit."""
        ...


class Model(Protocol):
    """As much of a model that is READY as a request needs."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def max_rows(self) -> int: ...
    @property
    def batcher(self) -> Queue: ...


class Models(Protocol):
    """``generation`` changes whenever what ``get`` gives may have."""

    @property
    def generation(self) -> int: ...

    def get(self, name: str) -> Model:
        """Raises ModelNotFound, or ModelUnavailable unless the model is READY."""
        ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that is READY."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_rows: int  # of one request
    plan: Plan
    batcher: Batcher


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What is known of a model in any state. ``failure`` is for logs, never for the wire; ``told`` is its kind, for
    anyone."""

    name: str
    state: ModelState
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    max_rows: int = 0
    plan: Plan | None = None
    failure: str = ""
    told: str = ""


def not_found(name: str) -> NoReturn:
    """Raises ModelNotFound."""
    shown = name if len(name) <= 64 else f"{name[:64]}..."  # the client chose it: it may be megabytes long
    raise ModelNotFound(f"no model {shown!r}")


def not_ready(name: str, state: ModelState) -> NoReturn:
    """Raises ModelUnavailable."""
    raise ModelUnavailable(f"model {name!r} is not ready: {state.value}")
