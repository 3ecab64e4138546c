"""One bucket's search: programs of every lowering, their contenders, the best of all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from torch import Tensor

from opara_server.engine.choice import Choice, write_choice
from opara_server.engine.contenders import Contender, contenders, shortlist, with_lean, with_urgent
from opara_server.engine.device import Device
from opara_server.engine.errors import CaptureError, EngineError, first_line
from opara_server.engine.lowerings import Lowerings
from opara_server.engine.options import ATEN, AUTO, FUSED, OPT_IN, BuildOptions
from opara_server.engine.plan import BEYOND_BUDGET, Plan
from opara_server.engine.plan_store import SavedPlan
from opara_server.engine.policies import SLOW_POLICIES, quick_policies
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.program_json import Json, ProgramWriter, UnsavableError
from opara_server.engine.select import select

log = logging.getLogger(__name__)

SEARCHED = 2  # of the programs, the most promising: those that get the policies that search
FEW = 2  # graphs, programs: the simplest and one more, whatever the budget
MADE, LEANED = 0.5, 0.75  # of a batch size's time for measuring: when profiles and schedules, then lean ones, are made


class Search:
    """Half of ``options.tuning_budget_s`` is for lowering, half for measuring, the same for each batch size.
    ``in_turn``: how many batch sizes are lowered one after the other, here; others are meanwhile. ``clock``: in s."""

    def __init__(
        self,
        lowerings: Lowerings,
        device: Device,
        options: BuildOptions,
        in_turn: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lowerings = lowerings
        self._device = device
        self._options = options
        self._clock = clock
        self._lowering_s = options.tuning_budget_s / 2 / in_turn
        self._measuring_s = options.tuning_budget_s / 2 / len(set(options.batch_sizes))

    def lower(self, bucket: int, inputs: Sequence[Tensor]) -> list[Program]:
        """The simplest program first, then, until the time is over, those of the other lowerings that are wanted.

        Raises LoweringError where there is not even the simplest.
        """
        programs = [self._lowerings.simplest(bucket, inputs)]
        begin = self._clock()
        for fused in self._lowerings.fused(bucket, inputs, self._wanted()):
            programs.append(fused)
            if self._clock() - begin > self._lowering_s:
                break
        return programs

    def choose(self, programs: Sequence[Program]) -> Choice:
        """Raises CaptureError where the first program does not even run."""
        latency, begin = self._device.latency, self._clock()
        found = self._schedules(programs, begin + MADE * self._measuring_s)
        shortlisted = list(chain.from_iterable(shortlist(of_one, latency) for of_one in found))
        entrants = with_lean(shortlisted, latency, self._past(begin + LEANED * self._measuring_s))
        if self._options.policy == AUTO and self._options.priorities and self._device.kind == "cuda":
            entrants = with_urgent(entrants, latency)
        choice = select(entrants, self._device, max(0.0, begin + self._measuring_s - self._clock()))
        self._warn_of(choice)
        return choice

    def _schedules(self, programs: Sequence[Program], end: float) -> list[list[Contender]]:
        """Of each program. What takes long is not begun after its part of the time until ``end``, or stops then."""
        profiled = list(self._profiled(programs, end))
        parts = self._parts(len(profiled), end)
        found = [self._contenders(*pair, until) for pair, until in zip(profiled, parts, strict=True)]
        if self._options.policy == AUTO:
            promising = sorted(range(len(found)), key=lambda n: self._fastest_us(found[n]))[:SEARCHED]
            for number, until in zip(promising, self._parts(len(promising), end), strict=True):
                if self._clock() < until:
                    found[number] += self._made(*profiled[number], SLOW_POLICIES, until)[1:]
        return found

    def _parts(self, count: int, end: float) -> Iterator[float]:
        """When each of ``count`` is to be done, one after the other: what is left until ``end``, in equal parts."""
        for left in range(count, 0, -1):
            now = self._clock()
            yield now + (end - now) / left

    def _past(self, end: float) -> Callable[[], bool]:
        return lambda: self._clock() > end

    def _warn_of(self, choice: Choice) -> None:
        candidates = choice.candidates
        measured = sum(candidate.measured_us > 0 for candidate in candidates)
        if measured <= FEW and any(candidate.rejected == BEYOND_BUDGET for candidate in candidates):
            log.warning(
                "%s: a tuning budget of %g s is too short: of %d graphs that should be fast %d could be measured",
                self._lowerings.name,
                self._options.tuning_budget_s,
                len(candidates),
                measured,
            )

    def _wanted(self) -> Sequence[str]:
        lowering = self._options.lowering
        if lowering == AUTO:
            return [name for name in FUSED if name not in OPT_IN] if self._device.kind == "cuda" else []
        return [] if lowering == ATEN else [lowering]

    def _contenders(self, program: Program, profile: Profile, until: float) -> list[Contender]:
        policy = self._options.policy
        return self._made(program, profile, quick_policies(program.graph.width) if policy == AUTO else [policy], until)

    def _made(self, program: Program, profile: Profile, policies: Sequence[str], until: float) -> list[Contender]:
        return contenders(program, profile, policies, self._device.max_streams, self._past(until))

    def _fastest_us(self, entrants: Sequence[Contender]) -> float:
        return min(entrant.predicted_us(self._device.latency) for entrant in entrants)

    def _profiled(self, programs: Sequence[Program], until: float) -> Iterator[tuple[Program, Profile]]:
        """Without those that fail, which is said; the first must not. Nor those that there is no time for."""
        for number, program in enumerate(programs):
            if number >= FEW and self._clock() > until:
                break
            try:
                yield program, self._device.profile(program)
            except Exception as error:
                if number > 0:
                    log.warning(
                        "%s: the %s lowering fails: %s", self._lowerings.name, program.lowering, first_line(error)
                    )
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
