"""The right answers of one module, and whether a system gives them; one set of inputs and answers for all systems."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from bench.cells import FLOAT64
from bench.subject import Subject
from bench.timing import Runner
from opara_server.engine.errors import first_line
from opara_server.engine.tensors import fill_random
from opara_server.engine.verify import OVER_EAGER, default_bound, error_norm, poison

QUESTIONS = 3
REPLAYS = (10, 100)
REPLAY_SECONDS = 0.2  # per system that is only compared with


@dataclass(frozen=True)
class Question:
    """``allowed``: per output the largest error norm that counts as right; ``repeats``: by which a run may differ from
    another one on the same inputs."""

    inputs: tuple[Tensor, ...]
    eager: tuple[Tensor, ...]
    exact: tuple[Tensor, ...]
    allowed: tuple[float, ...]
    repeats: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    error: float
    verified: bool
    detail: str = ""


@dataclass(frozen=True)
class Reference:
    """``source``: "float64", or where the module does not run in float64 "eager PyTorch" and why."""

    questions: tuple[Question, ...]
    source: str

    def judge(self, runner: Runner, replays: int, arena: Tensor | None = None) -> Verdict:
        """Every question asked with the outputs and the ``arena`` poisoned; then ``replays`` runs that take the
        questions in turns, each of which must repeat the first answer to the same question to within ``repeats``."""
        scratch = () if arena is None else (arena,)
        worst = 0.0
        first = []
        for question in self.questions:
            answer = _ask(runner, question, scratch)
            first.append([tensor.clone() for tensor in answer])
            for number, (out, ref, allowed) in enumerate(zip(answer, question.exact, question.allowed, strict=True)):
                error = error_norm(out, ref)
                worst = max(worst, error)
                if not error <= allowed:  # also when NaN
                    return Verdict(worst, False, f"output {number}: error {error:.2e}, allowed {allowed:.2e}")
        for replay in range(replays):
            turn = replay % len(self.questions)
            question = self.questions[turn]
            answer = _ask(runner, question, scratch)
            for number, (out, ref, most) in enumerate(zip(answer, first[turn], question.repeats, strict=True)):
                if not error_norm(out, ref) <= most:
                    return Verdict(worst, False, f"output {number} differs between runs of the same input")
        return Verdict(worst, True)


def replays_for(run_us: float) -> int:
    """How many runs may be repeated in REPLAY_SECONDS."""
    least, most = REPLAYS
    return min(most, max(least, int(REPLAY_SECONDS * 1e6 / run_us)))


def reference(subject: Subject) -> Reference:
    """The outputs in float64, and eager PyTorch's own errors, which bound what a system may be wrong by."""
    module, flat = subject.module, subject.flat
    drawn = []
    for _ in range(QUESTIONS):
        fill_random(subject.inputs, flat.inputs)
        drawn.append(tuple(tensor.clone() for tensor in subject.inputs))
    eager = [flat(*_copies(inputs)) for inputs in drawn]
    try:
        exact, source = _exact(subject, drawn), FLOAT64
    except Exception as error:  # noqa: BLE001 - a model may raise anything on doubles it does not expect
        exact, source = eager, f"eager PyTorch ({type(error).__name__}: {first_line(error)})"
    bound = default_bound(module, subject.device)
    return Reference(
        tuple(
            Question(
                inputs,
                own,
                right,
                allowed=tuple(_allowed(o, r, bound) for o, r in zip(own, right, strict=True)),
                repeats=tuple(bound if output.is_floating_point() else 0.0 for output in own),
            )
            for inputs, own, right in zip(drawn, eager, exact, strict=True)
        ),
        source,
    )


def _ask(runner: Runner, question: Question, scratch: Sequence[Tensor]) -> Sequence[Tensor]:
    for static, value in zip(runner.inputs, question.inputs, strict=True):
        static.copy_(value)  # a module may write to its inputs
    poison((*runner.outputs, *scratch))
    runner.replay()
    return runner.outputs


def _exact(subject: Subject, drawn: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, ...]]:
    """Raises whatever the module does."""
    chosen = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False  # nobody waits for the reference to be fast
    try:
        module = copy.deepcopy(subject.module).double()
        doubles = [[t.double() if t.is_floating_point() else t.clone() for t in inputs] for inputs in drawn]
        return [subject.flat.run(module, inputs) for inputs in doubles]
    finally:
        torch.backends.cudnn.benchmark = chosen


def _allowed(eager: Tensor, exact: Tensor, bound: float) -> float:
    if not eager.is_floating_point():
        return 0.0
    own = error_norm(eager, exact)
    return max(bound, OVER_EAGER * own) if isfinite(own) else bound


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]
