"""How a model is to be compiled. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from opara_server.engine.policies import check_policy

AUTO = "auto"  # as a policy: measure them all


@dataclass(frozen=True)
class BuildOptions:
    """``policy``: a name from POLICIES, or AUTO. ``priorities``: high priority for the streams of the longest path.
    ``tolerance``: the verification bound instead of the dtype's own. ``cache_dir``: where plans are saved and looked
    for; None: nowhere. Raises ValueError on what cannot be."""

    batch_sizes: tuple[int, ...]
    policy: str = AUTO
    channels_last: bool = False
    priorities: bool = False
    tolerance: float | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if not self.batch_sizes or any(size < 1 for size in self.batch_sizes):
            raise ValueError(f"batch sizes must be positive and at least one: {list(self.batch_sizes)}")
        if self.policy != AUTO:
            check_policy(self.policy)
