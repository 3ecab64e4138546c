"""What a metric is, before it has a value: what the reference page and the dashboards are held to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Declared:
    """``name``: as Prometheus has it, but for what a histogram's series end in. ``bounds``: of a histogram's buckets,
    in seconds."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    def series(self) -> Iterator[str]:
        """The names under which Prometheus keeps it."""
        if self.kind == "histogram":
            yield from (f"{self.name}_{suffix}" for suffix in ("bucket", "sum", "count"))
        else:
            yield self.name
