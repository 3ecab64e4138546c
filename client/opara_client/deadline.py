"""A point in time that several calls share."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """``at``: on the clock of ``time.monotonic()``; None: never."""

    at: float | None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        return cls(None if seconds is None else time.monotonic() + seconds)

    def left(self) -> float | None:
        """Seconds left, not below 0; None: no limit. What gRPC takes as a call's timeout."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())
