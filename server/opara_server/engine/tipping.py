"""Integers that rounding tips over: whether so many are wrong that it cannot be that.

An argmax or a comparison is made of rounded numbers: where two of these are nearly equal, another kernel that rounds as
well as eager's gives the other integer. So one is right if it is eager's or float64's. Of those that are neither there
may be TIMES as many as there are of eager's that are not float64's, and SLACK more, since of few values the one count
may be 0 by chance and the other is not. No place of an output may be wrong on every input, unless eager's often is.

Of graphs that tip as many as eager does, be that 1 in 1000 or 3 in 10, fewer than 3 in 1000 are refused; of those that
tip twice as many fewer than 4 in 100.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

TIMES = 5.0
SLACK = 8
VALUES, RUNS = 200, 10  # looked at before a graph that has any wrong is believed


@dataclass
class Tally:
    """Of one integer or bool output. ``wrong``: per place, on how many inputs it is neither eager's nor float64's;
    ``eager_wrong``: on how many eager's is not float64's."""

    runs: int = 0
    wrong: Tensor | int = 0
    eager_wrong: Tensor | int = 0

    def add(self, out: Tensor, own: Tensor, ref: Tensor) -> None:
        """Of one more input: the output, eager's, float64's."""
        self.runs += 1
        self.wrong = self.wrong + ((out != own) & (out != ref)).int()
        self.eager_wrong = self.eager_wrong + (own != ref).int()

    @property
    def undecided(self) -> bool:
        """Whether more inputs have to be looked at."""
        if isinstance(self.wrong, int) or not self.wrong.any():
            return False
        return self.runs < RUNS or self.runs * self.wrong.numel() < VALUES

    @property
    def fault(self) -> str:
        """What rounding does not explain; empty where it explains all."""
        if isinstance(self.wrong, int) or isinstance(self.eager_wrong, int):
            return ""
        wrong, eager_wrong = int(self.wrong.sum()), int(self.eager_wrong.sum())
        if wrong > SLACK + TIMES * eager_wrong:
            count = self.runs * self.wrong.numel()
            return (
                f"{wrong} of {count} values are neither eager's nor float64's; of eager's {eager_wrong} not float64's"
            )
        always = int(((self.wrong == self.runs) & (TIMES * self.eager_wrong < self.runs)).sum())
        return f"{always} of {self.wrong.numel()} values are never right" if always and self.runs >= RUNS else ""
