"""What the rest of the server knows of a model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from opara_server.engine.plan import Plan
from opara_server.engine.spec import TensorSpec
from opara_server.serving.batcher import Batcher


class ModelState(StrEnum):
    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"
    UNLOADED = "UNLOADED"


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
    """What is known of a model in any state. ``failure`` is for logs, never for the wire."""

    name: str
    state: ModelState
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    max_rows: int = 0
    plan: Plan | None = None
    failure: str = ""
