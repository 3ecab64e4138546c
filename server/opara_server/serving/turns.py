"""Whose turn it is on a device that several models share.

Start-time Fair Queuing (Goyal, Guo, Vin: A Hierarchical CPU Scheduler for Multimedia Operating Systems, OSDI 1996),
with batches for quanta. Each model has a virtual time, which advances by the measured time of its batches over its
weight; the model that is furthest behind comes next. So models that always have work share the device's time as their
weights are to each other, however long their batches are, and a batch's length need be known only afterwards. A model
that had nothing to run goes on from the virtual time of the others: idle time is no credit.
"""

from __future__ import annotations


class Share:
    """One model's part of the device. ``start``: virtual seconds at which its next batch starts."""

    __slots__ = ("_weight", "start")

    def __init__(self, weight: float = 1.0) -> None:
        self._weight = weight
        self.start = 0.0

    def used(self, seconds: float) -> None:
        """A batch of its took the device for so long."""
        self.start += seconds / self._weight


class Turns:
    """The virtual time of one device: where the batch started that was begun last."""

    def __init__(self) -> None:
        self._time = 0.0

    def rest(self, share: Share) -> None:
        """It has nothing to run now."""
        share.start = max(share.start, self._time)

    def begin(self, share: Share) -> None:
        """It runs its next batch: of all that could it has the earliest start."""
        self._time = share.start


class InFlight:
    """``until``: no earlier than this, on the clock, a device is through with the batches that it has been given."""

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = 0.0

    def add(self, now: float, seconds: float) -> None:
        """Another batch, which keeps the device for at least so long."""
        self.until = max(now, self.until) + seconds
