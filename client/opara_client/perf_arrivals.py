"""When the requests of an open loop are due."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

NS = 1_000_000_000


class Spacing(StrEnum):
    POISSON = "poisson"  # exponentially distributed gaps: independent users
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Bursts of ``burst`` requests that are due at once; on average, ``rate`` requests are due in a second."""

    rate: float
    burst: int = 1
    spacing: Spacing = Spacing.POISSON
    seed: int = 0

    def due_ns(self, seconds: float) -> npt.NDArray[np.int64]:
        """The times below ``seconds`` at which a request is due, in ns from the start, ascending; the same every time.

        All processes of one load compute the same times and take turns, so their number does not change the load.
        """
        gap_s = self.burst / self.rate
        constant = self.spacing is Spacing.CONSTANT
        bursts = np.arange(0.0, seconds, gap_s) if constant else self._poisson(seconds, gap_s)
        return np.repeat((bursts * NS).astype(np.int64), self.burst)

    def _poisson(self, seconds: float, gap_s: float) -> npt.NDArray[np.float64]:
        """Given their number, which has a Poisson distribution, the points of a Poisson process are uniform."""
        random = np.random.default_rng(self.seed)
        return np.sort(random.random(random.poisson(seconds / gap_s)) * seconds)
