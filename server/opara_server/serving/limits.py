"""What is set of a model's batches and of its queue."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from opara_server.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class Limits:
    """``buckets`` and ``preferred_sizes`` ascending; what is called rows counts rows.

    ``level_rows``: per level of priority, the highest first, how many rows may wait there; empty: one level, bounded
    by ``max_queue_rows`` alone. Levels count from 1.
    """

    buckets: tuple[int, ...]
    max_rows: int  # of one request
    max_queue_rows: int  # of all levels together
    max_queue_delay_s: float = 0.0
    preferred_sizes: tuple[int, ...] = ()
    level_rows: tuple[int, ...] = ()
    default_level: int = 1
    queue_timeout_s: float = inf
    timeout_override: bool = True

    @classmethod
    def of(cls, config: ModelConfig, buckets: tuple[int, ...]) -> Limits:
        """What a model.toml says, of a model with these ``buckets``."""
        batching, levels = config.batching, config.batching.priority_levels
        return cls(
            buckets,
            config.max_rows,
            config.max_queue_rows,
            max_queue_delay_s=batching.max_queue_delay_us / 1e6,
            preferred_sizes=batching.preferred_sizes,
            level_rows=batching.priority_queue_rows or ((config.max_queue_rows,) * levels if levels > 1 else ()),
            default_level=batching.default_priority or levels,
            queue_timeout_s=batching.queue_timeout_us / 1e6 or inf,
            timeout_override=batching.allow_timeout_override,
        )

    @property
    def largest(self) -> int:
        return self.buckets[-1]

    def level(self, priority: int) -> int:
        """The level of a request. As in Triton's protocol 1 is the highest, and both 0 and what the model does not
        have mean its default."""
        return priority if 1 <= priority <= len(self.level_rows) else self.default_level

    def timeout_s(self, timeout_us: int) -> float:
        """How long a request may wait. As in Triton a request can shorten the model's own time, where the model lets
        it, never extend it; 0 asks for nothing."""
        if not (timeout_us and self.timeout_override):
            return self.queue_timeout_s
        return min(timeout_us / 1e6, self.queue_timeout_s)
