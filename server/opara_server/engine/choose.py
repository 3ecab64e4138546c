"""One bucket's search: programs of every lowering, their contenders, the best of all."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import chain

from torch import Tensor

from opara_server.engine.choice import Choice, write_choice
from opara_server.engine.device import Device
from opara_server.engine.errors import CaptureError, EngineError, first_line
from opara_server.engine.lowerings import Lowerings
from opara_server.engine.options import ATEN, AUTO, FUSED, OPT_IN, BuildOptions
from opara_server.engine.plan import Plan
from opara_server.engine.plan_store import SavedPlan
from opara_server.engine.policies import POLICIES, SLOW_POLICIES
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.program_json import Json, ProgramWriter, UnsavableError
from opara_server.engine.select import Contender, contenders, select, shortlist, with_lean

log = logging.getLogger(__name__)

QUICK_POLICIES = [name for name in POLICIES if name not in SLOW_POLICIES]
SEARCHED = 2  # of the programs, the most promising: those that get the policies that search


class Search:
    """Half of ``options.tuning_budget_s`` is for lowering, half for measuring, the same for each batch size.
    ``in_turn``: how many batch sizes are lowered one after the other, here; others are meanwhile."""

    def __init__(self, lowerings: Lowerings, device: Device, options: BuildOptions, in_turn: int) -> None:
        self._lowerings = lowerings
        self._device = device
        self._options = options
        self._lowering_s = options.tuning_budget_s / 2 / in_turn
        self._measuring_s = options.tuning_budget_s / 2 / len(set(options.batch_sizes))

    def lower(self, bucket: int, inputs: Sequence[Tensor]) -> list[Program]:
        """The simplest program first, then, until the time is over, those of the other lowerings that are wanted.

        Raises LoweringError where there is not even the simplest.
        """
        programs = [self._lowerings.simplest(bucket, inputs)]
        begin = time.monotonic()
        for fused in self._lowerings.fused(bucket, inputs, self._wanted()):
            programs.append(fused)
            if time.monotonic() - begin > self._lowering_s:
                break
        return programs

    def choose(self, programs: Sequence[Program]) -> Choice:
        """Raises CaptureError where the first program does not even run."""
        begin = time.monotonic()
        programs, profiles = zip(*self._profiled(programs), strict=True)
        found = [self._contenders(*pair, QUICK_POLICIES) for pair in zip(programs, profiles, strict=True)]
        if self._options.policy == AUTO:
            by_promise = sorted(range(len(programs)), key=lambda n: self._fastest_us(found[n]))
            for number in by_promise[:SEARCHED]:
                found[number] += self._contenders(programs[number], profiles[number], SLOW_POLICIES)[1:]
        shortlisted = chain.from_iterable(shortlist(of_one, self._device.latency) for of_one in found)
        entrants = with_lean(list(shortlisted), self._device.latency)
        return select(entrants, self._device, max(0.0, self._measuring_s - (time.monotonic() - begin)))

    def _wanted(self) -> Sequence[str]:
        lowering = self._options.lowering
        if lowering == AUTO:
            return [name for name in FUSED if name not in OPT_IN] if self._device.kind == "cuda" else []
        return [] if lowering == ATEN else [lowering]

    def _contenders(self, program: Program, profile: Profile, policies: Sequence[str]) -> list[Contender]:
        options = self._options
        wanted = policies if options.policy == AUTO else [options.policy]
        return contenders(program, profile, wanted, self._device.max_streams, options.priorities)

    def _fastest_us(self, entrants: Sequence[Contender]) -> float:
        return min(entrant.predicted_us(self._device.latency) for entrant in entrants)

    def _profiled(self, programs: Sequence[Program]) -> Iterator[tuple[Program, Profile]]:
        """Without those that fail, which is said; the first must not."""
        for number, program in enumerate(programs):
            try:
                yield program, self._device.profile(program)
            except Exception as error:
                if number > 0:
                    log.warning("the %s lowering fails: %s", program.lowering, first_line(error))
                elif isinstance(error, EngineError):
                    raise
                else:
                    raise CaptureError(f"the model's operators fail: {first_line(error)}") from error


def saved_plan(name: str, device: Device, choices: dict[int, Choice], writer: ProgramWriter) -> SavedPlan:
    """As if it had been saved; what cannot be written down gives way. Raises UnsavableError where all of a bucket's
    cannot."""
    written, plans = {}, []
    for bucket, found in sorted(choices.items()):
        written[str(bucket)], choice = _written(found, writer)
        plans.append(choice.plan(bucket, 0, reused=False))
    return SavedPlan(Plan(name, device.kind, device.name, tuple(plans)), written, writer.tensors)


def _written(choice: Choice, writer: ProgramWriter) -> tuple[Json, Choice]:
    try:
        return write_choice(choice, writer), choice
    except UnsavableError as error:
        if choice.winner == 0:
            raise
        return _written(choice.falling_back(f"cannot be saved: {error}"), writer)
