"""How a model is to be compiled. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from opara_server.engine.policies import check_policy

AUTO = "auto"  # as a policy or a lowering: measure them all
ATEN = "aten"
FUSED = (  # in the order in which they are tried while the tuning budget lasts
    "fused_rewritten",
    "fused_company",
    "fused_rewritten_combo",
    "fused_company_combo",
    "fused",
    "fused_combo",
    "fused_epilogues",
    "fused_1x1_as_mm",
    "fused_max_autotune",
)
LOWERINGS = (AUTO, ATEN, *FUSED)
COMPANY_OF = {"fused_company": "fused_rewritten", "fused_company_combo": "fused_rewritten_combo"}
OPT_IN = {"fused_max_autotune"}  # minutes of compiling: not among AUTO's


@dataclass(frozen=True)
class BuildOptions:
    """``policy``: a name from POLICIES, or AUTO. ``lowering``: ATEN, one of FUSED, or AUTO; what is named competes with
    the sequential graph of ATen operators alone. ``tuning_budget_s``: about how long all batch sizes together may take
    to compile fused operators and to be measured; each gets one fused variant at least. ``tune_behind``: without a
    saved plan the model runs its simplest graphs at once, and whoever runs it lets CompiledModel.behind search
    meanwhile. ``priorities``: AUTO's most promising schedules compete with high priority for the streams of the longest
    path as well, on a GPU. ``tolerance``: the verification bound instead of the dtype's own. ``cache_dir``: where plans
    are saved and looked for; None: nowhere. Raises ValueError on what cannot be."""

    batch_sizes: tuple[int, ...]
    policy: str = AUTO
    lowering: str = AUTO
    tuning_budget_s: float = 300.0
    tune_behind: bool = False
    channels_last: bool = False
    priorities: bool = True
    tolerance: float | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if not self.batch_sizes or any(size < 1 for size in self.batch_sizes):
            raise ValueError(f"batch sizes must be positive and at least one: {list(self.batch_sizes)}")
        if self.policy != AUTO:
            check_policy(self.policy)
        if self.lowering not in LOWERINGS:
            raise ValueError(f"unknown lowering {self.lowering!r}: not one of {', '.join(LOWERINGS)}")
        if not self.tuning_budget_s >= 0:
            raise ValueError(f"a tuning budget of {self.tuning_budget_s} s")
