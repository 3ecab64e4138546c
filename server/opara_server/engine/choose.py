"""One bucket's search: every lowering, its contenders, the best of all."""

from __future__ import annotations

import time

from opara_server.engine.choice import Choice
from opara_server.engine.device import Device
from opara_server.engine.errors import CaptureError, EngineError, first_line
from opara_server.engine.lowerings import Lowerings
from opara_server.engine.options import BuildOptions
from opara_server.engine.program import Program
from opara_server.engine.select import Contender, contenders, select, shortlist


class Search:
    def __init__(self, lowerings: Lowerings, device: Device, options: BuildOptions) -> None:
        self._lowerings = lowerings
        self._device = device
        self._options = options

    def choose(self, bucket: int, simplest: Program, budget_s: float) -> Choice:
        """Lowerings are made for half of the budget, the most wanted first; the rest is for measuring.

        Raises CaptureError where the simplest program does not even run.
        """
        begin = time.monotonic()
        entrants = self._entrants(simplest)
        for fused in self._lowerings.fused(bucket, self._lowerings.wanted()):
            entrants += self._entrants(fused)
            if time.monotonic() - begin > budget_s / 2:
                break
        return select(entrants, self._device, max(0.0, budget_s - (time.monotonic() - begin)))

    def _entrants(self, program: Program) -> list[Contender]:
        try:
            profile = self._device.profile(program)
        except EngineError:
            raise
        except Exception as error:
            raise CaptureError(f"the model's operators fail: {first_line(error)}") from error
        options = self._options
        found = contenders(program, profile, options.policy, self._device.max_streams, options.priorities)
        return shortlist(found, self._device.latency)
