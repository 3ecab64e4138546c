"""The plan of a model: per bucket what runs, and the measurements that chose it. JSON. No torch in here.

The types also say, to pydantic, what a saved plan must be to be believed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

log = logging.getLogger(__name__)

SEQUENTIAL = "sequential"
BEYOND_BUDGET = "not measured: beyond the tuning budget"

Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Microseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Measured = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One schedule of one lowering. ``compact``: its streams were reduced to what its order needs. ``measured_us``: by
    the search, beside all others; 0 where it was not captured. ``again_us``: as a graph captured to serve, beside
    sequential's; 0 where it was not. ``rejected``: why it could not be chosen whatever it measured; else empty."""

    __pydantic_config__ = _STRICT

    lowering: Name
    policy: Name
    compact: bool
    streams: Count
    synchronisations: Count
    predicted_us: Microseconds
    measured_us: Microseconds
    peak_bytes: Count  # for activations: memory.memory_bytes
    rejected: str = ""
    again_us: Microseconds = 0.0

    @property
    def latest_us(self) -> float:
        return self.again_us or self.measured_us

    @property
    def given_up(self) -> bool:
        """Whether it was tried and refused, not only left out."""
        return self.rejected not in {"", BEYOND_BUDGET}

    @property
    def key(self) -> tuple[str, str, bool]:
        """Which of a bucket's candidates it is."""
        return self.lowering, self.policy, self.compact

    @property
    def label(self) -> str:
        """The same for a person."""
        return f"{self.lowering} {self.policy}{' compact' if self.compact else ''}"


@dataclass(frozen=True, slots=True)
class BucketPlan:
    """What runs for one batch size. ``lowering``: "aten", one of the fused ones, or "whole" where the operators
    could not be had. ``measured_us``: as it serves. ``sequential_us``: what ATen operators (or the whole) take one
    after the other, measured beside it."""

    __pydantic_config__ = _STRICT

    batch_size: Annotated[int, Field(ge=1)]
    policy: Name
    compact: bool
    lowering: Name
    operators: Count
    width: Count
    depth: Count
    longest_path_us: Microseconds
    streams: Count
    synchronisations: Count
    measured_us: Measured
    sequential_us: Measured
    peak_bytes: Count  # the chosen candidate's: in use at most during a run
    candidates: tuple[Candidate, ...] = ()
    reused: bool = False  # taken from a saved plan, then verified and timed again
    steady_bytes: Count = 0  # what its graph keeps while idle, beyond what those of larger buckets keep

    @property
    def key(self) -> tuple[str, str, bool]:
        """Of the candidate that was chosen."""
        return self.lowering, self.policy, self.compact

    @property
    def speedup(self) -> float:
        return self.sequential_us / self.measured_us

    @property
    def memory_ratio(self) -> float | None:
        """``peak_bytes`` over the first candidate's, which ``sequential_us`` is of; None where that needs none."""
        sequential_bytes = self.candidates[0].peak_bytes if self.candidates else 0
        return self.peak_bytes / sequential_bytes if sequential_bytes else None


@dataclass(frozen=True)
class Plan:
    """``fallback_reason``: why the model runs as one sequential graph; empty where its operators were scheduled."""

    __pydantic_config__ = _STRICT

    model: Name
    device: Name
    device_name: str
    buckets: Annotated[tuple[BucketPlan, ...], Field(min_length=1)]
    fallback_reason: str = ""

    @property
    def reused(self) -> bool:
        return all(bucket.reused for bucket in self.buckets)

    @property
    def chosen(self) -> dict[int, tuple[str, str, bool]]:
        """Per batch size the key of the candidate that runs."""
        return {bucket.batch_size: bucket.key for bucket in self.buckets}

    def bucket(self, batch_size: int) -> BucketPlan:
        """Raises KeyError where there is none."""
        for bucket in self.buckets:
            if bucket.batch_size == batch_size:
                return bucket
        raise KeyError(f"the plan of {self.model} has no batch size {batch_size}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of ``to_json``, by way of JSON. Raises ValueError on anything else."""
        try:
            plan = _SAVED.validate_json(json.dumps(data))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where or 'the plan'}: {first['msg']}") from None
        sizes = [bucket.batch_size for bucket in plan.buckets]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"buckets: {sizes} are not ascending")
        return plan


_SAVED = TypeAdapter(Plan)
