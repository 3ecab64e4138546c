"""Right and wrong answers are told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.cells import CellKey
from bench.models import BenchModel
from bench.reference import Reference, reference, replays_for
from bench.subject import Subject, opened_subject
from bench.systems.runners import Called
from tests.bench.tiny import BRANCHES
from tests.engine.models import ROW, Function

KEY = CellKey("tiny", "float32", 3)
Answer = tuple[Tensor, ...]


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with opened_subject(KEY, BRANCHES, "cpu", 0.01, 1.0) as opened:
        yield opened


@pytest.fixture(scope="module")
def right(subject: Subject) -> Reference:
    return reference(subject)


def runner(subject: Subject, change: Callable[[Answer, int], Answer]) -> Called:
    """The module, with something done to its outputs in the n-th run."""
    runs = 0

    def function(*inputs: Tensor) -> Answer:
        nonlocal runs
        runs += 1
        return change(subject.flat(*inputs), runs)

    return Called(function, subject.inputs)


def test_the_module_itself_is_right(subject: Subject, right: Reference) -> None:
    verdict = right.judge(runner(subject, lambda outputs, _run: outputs), 10)
    assert verdict.verified
    assert 0 < verdict.error < 1e-6
    assert right.source == "float64"


def only_float32(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise TypeError("no doubles")
    return x * 2


def test_where_float64_fails_it_is_said_why() -> None:
    model = BenchModel(lambda: Function(only_float32).eval(), lambda _dtype: ROW)
    with opened_subject(KEY, model, "cpu", 0.01, 1.0) as opened:
        assert reference(opened).source == "eager PyTorch (TypeError: no doubles)"


def test_a_small_mistake_is_seen(subject: Subject, right: Reference) -> None:
    verdict = right.judge(runner(subject, lambda outputs, _run: (outputs[0] * 1.01,)), 10)
    assert not verdict.verified
    assert verdict.error == pytest.approx(0.01, rel=0.01)
    assert "allowed" in verdict.detail


def test_an_answer_to_the_question_before_is_wrong(subject: Subject, right: Reference) -> None:
    kept: list[Answer] = []

    def late(outputs: Answer, _run: int) -> Answer:
        kept.append(tuple(tensor.clone() for tensor in outputs))
        return kept[-2] if len(kept) > 1 else kept[-1]

    assert not right.judge(runner(subject, late), 0).verified


def test_an_output_that_is_not_written_is_wrong(subject: Subject, right: Reference) -> None:
    kept: list[Answer] = []

    def never(outputs: Answer, _run: int) -> Answer:
        kept.append(kept[0] if kept else outputs)
        return kept[-1]

    assert not right.judge(runner(subject, never), 0).verified


def test_a_mistake_now_and_then_is_seen(subject: Subject, right: Reference) -> None:
    def sometimes(outputs: Answer, run: int) -> Answer:
        return (outputs[0] + 1,) if run == 12 else outputs

    assert right.judge(runner(subject, sometimes), 3).verified
    verdict = right.judge(runner(subject, sometimes), 10)
    assert not verdict.verified
    assert "between runs" in verdict.detail


def test_slow_systems_repeat_less() -> None:
    assert [replays_for(us) for us in (1.0, 10_000.0, 1e6)] == [100, 20, 10]


def test_weights_and_inputs_are_the_same_each_time() -> None:
    found = []
    for _ in range(2):
        with opened_subject(KEY, BRANCHES, "cpu", 0.01, 1.0) as opened:
            found.append(opened.flat(*opened.inputs)[0])
    assert torch.equal(*found)


def test_a_repeat_may_differ_by_the_dtypes_bound_alone(subject: Subject, right: Reference) -> None:
    wide = tuple(replace(question, allowed=(0.3,)) for question in right.questions)
    lax = replace(right, questions=wide)
    assert lax.judge(runner(subject, lambda outputs, _run: (outputs[0] * 1.01,)), 10).verified
    verdict = lax.judge(runner(subject, lambda outputs, run: (outputs[0] * (1 + run / 1000),)), 10)
    assert not verdict.verified
    assert "between runs" in verdict.detail
    assert verdict.error < 0.3


def test_what_is_read_before_it_is_written_is_poison(subject: Subject, right: Reference) -> None:
    arena = torch.zeros(8, dtype=torch.uint8)
    early = runner(subject, lambda outputs, _run: (outputs[0] + 0 * arena.view(torch.float32)[0],))
    assert right.judge(early, 3).verified
    assert not right.judge(early, 3, arena).verified


def test_integers_repeat_exactly(subject: Subject, right: Reference) -> None:
    def whole(outputs: Answer, run: int) -> Answer:
        return (outputs[0], torch.full((3,), 10**9 + (run > 10)))

    first = tuple(
        replace(q, exact=(*q.exact, torch.full((3,), 10**9)), allowed=(*q.allowed, 0.0), repeats=(*q.repeats, 0.0))
        for q in right.questions
    )
    assert not replace(right, questions=first).judge(runner(subject, whole), 10).verified
