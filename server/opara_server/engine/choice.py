"""What was chosen for a bucket: two graphs that may serve, and the measurements that decided between all candidates."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from torch import Tensor

from opara_server.engine.memory import memory_bytes
from opara_server.engine.plan import SEQUENTIAL, BucketPlan, Candidate
from opara_server.engine.policies import make_schedule
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.program_json import Json, ProgramReader, ProgramWriter, UnsavableError
from opara_server.engine.schedule import Schedule, check
from opara_server.engine.steps import Steps

UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)  # what read_choice raises


@dataclass(frozen=True)
class Runnable:
    """What is captured: a program in a schedule. ``durations``: of its operators, measured alone, in µs."""

    program: Program
    schedule: Schedule
    durations: tuple[float, ...]


@dataclass(frozen=True)
class Choice:
    """``best`` was chosen, of those that ``candidates`` tells the measurements of: number ``winner``. Number 0 is
    ``simplest``, sequential. ``others``: with their numbers, should the best be refused."""

    simplest: Runnable
    best: Runnable
    candidates: tuple[Candidate, ...]
    winner: int
    others: tuple[tuple[int, Runnable], ...] = ()

    @property
    def chosen(self) -> Candidate:
        return self.candidates[self.winner]

    @property
    def sequential(self) -> Candidate:
        return self.candidates[0]

    def confirmed(self, sequential_us: float, chosen_us: float) -> Choice:
        """With the times of the graphs that were captured to serve; they count as measured where no search was."""
        candidates = list(self.candidates)
        for number, us in ((0, sequential_us), (self.winner, chosen_us)):
            candidate = candidates[number]
            candidates[number] = replace(candidate, again_us=us, measured_us=candidate.measured_us or us)
        return replace(self, candidates=tuple(candidates))

    def falling_back(self, reason: str) -> Choice:
        """The next of the others, else the simplest, instead of the best, which is refused for ``reason``."""
        marked = tuple(replace(c, rejected=reason) if i == self.winner else c for i, c in enumerate(self.candidates))
        (winner, best), *others = self.others or ((0, self.simplest),)
        return replace(self, candidates=marked, best=best, winner=winner, others=tuple(others))

    def plan(self, batch_size: int, steady_bytes: int, *, reused: bool) -> BucketPlan:
        chosen, graph = self.chosen, self.best.program.graph
        return BucketPlan(
            batch_size=batch_size,
            policy=chosen.policy,
            compact=chosen.compact,
            lowering=chosen.lowering,
            operators=len(graph),
            width=graph.width,
            depth=graph.depth,
            longest_path_us=graph.longest_path(self.best.durations),
            streams=chosen.streams,
            synchronisations=chosen.synchronisations,
            measured_us=chosen.latest_us,
            sequential_us=self.sequential.latest_us,
            peak_bytes=chosen.peak_bytes,
            candidates=self.candidates,
            reused=reused,
            steady_bytes=steady_bytes,
        )


def unsearched(program: Program) -> Choice:
    """The program in sequence, with nothing to choose from. Nothing is measured yet: all times count as 0."""
    graph = program.graph
    schedule = make_schedule(graph, Profile.uniform(len(graph)), SEQUENTIAL)
    runnable = Runnable(program, schedule, (0.0,) * len(graph))
    candidate = Candidate(
        lowering=program.lowering,
        policy=SEQUENTIAL,
        compact=False,
        streams=schedule.streams,
        synchronisations=schedule.synchronisations,
        predicted_us=0.0,
        measured_us=0.0,
        peak_bytes=memory_bytes(graph, schedule),
    )
    return Choice(runnable, runnable, (candidate,), 0)


def write_choice(choice: Choice, writer: ProgramWriter) -> Json:
    """Its graphs; the measurements are the plan's. The others say only what is not as the best has it. Raises
    UnsavableError."""
    best = None if choice.winner == 0 else _write(choice.best, writer)
    others = []
    for number, runnable in choice.others:
        with suppress(UnsavableError):  # they only stand by
            others.append([number, _write(runnable, writer, choice.best.program)])
    return {"simplest": _write(choice.simplest, writer), "best": best, "others": others}


def _write(runnable: Runnable, writer: ProgramWriter, best: Program | None = None) -> Json:
    program = {} if runnable.program is best else {"program": writer.write(runnable.program)}
    return program | {"schedule": runnable.schedule.to_json(), "durations": runnable.durations}


def read_choice(data: Json, plan: BucketPlan, reader: ProgramReader, inputs: Sequence[Tensor]) -> Steps[Choice]:
    """The inverse, with the bucket's plan, a program per step. Raises as ProgramReader.read does, and ValueError where
    the two disagree."""
    simplest = _read(data["simplest"], reader, inputs)
    yield
    best = simplest if data["best"] is None else _read(data["best"], reader, inputs)
    winner = [candidate.key for candidate in plan.candidates].index(plan.key)
    if (winner == 0) != (data["best"] is None):
        raise ValueError(f"candidate {winner} was chosen, but its graph is not there")
    others = []
    for number, other in data["others"]:
        yield
        others.append((number, _read(other, reader, inputs, best.program)))
    return Choice(simplest, best, plan.candidates, winner, tuple(others))


def _read(data: Json, reader: ProgramReader, inputs: Sequence[Tensor], best: Program | None = None) -> Runnable:
    program = best if best and "program" not in data else reader.read(data["program"], inputs)
    schedule = Schedule.from_json(data["schedule"])
    check(program.graph, schedule)
    durations = tuple(data["durations"])
    if len(durations) != len(program.graph):
        raise ValueError(f"{len(durations)} durations for {len(program.graph)} operators")
    return Runnable(program, schedule, durations)
