"""What the load generator needs of a protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol as Interface

import grpc

from opara_client.models import TensorSpec
from opara_client.security import Metadata
from opara_client.tensors import Array


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model declares; either may be empty in a protocol that does not demand it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Protocol(Interface):
    """A unary inference RPC. Implementations hold no state: they are sent to other processes.

    ``method``: the RPC's full name.
    """

    @property
    def method(self) -> str: ...

    def signature(
        self, channel: grpc.Channel, model: str, timeout_s: float, metadata: Metadata | None = None
    ) -> Signature:
        """Asks the server; raises OparaError."""
        ...

    def encode(self, model: str, inputs: Mapping[str, Array], declared: Mapping[str, str]) -> bytes:
        """The serialized request. ``declared``: dtype by input, as far as known."""
        ...

    def decode(self, answer: bytes) -> dict[str, Array]:
        """The outputs of a serialized answer; raises Internal where it is none."""
        ...
