"""Integers made of rounded numbers: graphs that round otherwise than eager are right, those that are wrong are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from opara_server.engine.capture import capture
from opara_server.engine.device_cpu import CpuDevice
from opara_server.engine.errors import VerificationError
from opara_server.engine.export import export_static
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.lower_aten import lower
from opara_server.engine.policies import make_schedule
from opara_server.engine.profile import Profile
from opara_server.engine.steps import at_once
from opara_server.engine.tensors import static_inputs
from opara_server.engine.tipping import RUNS, SLACK, TIMES, VALUES, Tally
from opara_server.engine.verify import FRESH_INPUTS, REPLAYS, Verifier
from tests.engine.devices import Spoil, SpoiledGraph, nothing
from tests.engine.models import ROW, Function

CPU = torch.device("cpu")
GRID = 1e6  # added and taken away again, it rounds float32 to sixteenths: one argmax in twenty tips over


def best(x: Tensor) -> Tensor:
    return ((x + GRID) - GRID).argmax(1)


def best_rounded_otherwise(x: Tensor) -> Tensor:
    return ((x - 1.7 * GRID) + 1.7 * GRID).argmax(1)


def worst(x: Tensor) -> Tensor:
    return ((x + GRID) - GRID).argmin(1)


def verify(graph_of: Callable[[Tensor], Tensor], rows: int, spoil: Spoil = nothing) -> int:
    """A graph of one function against the module ``best``; how many replays it took. Raises VerificationError."""
    device = CpuDevice(threads=1)
    flat = FlatModule(Function(best).eval(), ROW, rows, CPU, channels_last=False)
    with device.bind():
        inputs = static_inputs(ROW, rows, CPU, channels_last=False)
        program = lower(export_static(Function(graph_of).eval(), inputs), inputs)
        schedule = make_schedule(program.graph, Profile.uniform(len(program.graph)), "sequential")
        graph = SpoiledGraph(capture(program, schedule, device), spoil)
        at_once(Verifier(flat, device, None).check(graph))
    device.close()
    return graph.replays


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_a_graph_that_rounds_otherwise_is_right(rows: int) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        verify(best_rounded_otherwise, rows)


def test_the_graphs_of_these_tests_do_differ() -> None:
    x = torch.randn(2000, 8)
    assert 20 < int((best(x) != best_rounded_otherwise(x)).sum()) < 400
    assert 20 < int((best(x) != best(x.double())).sum()) < 400


def test_where_nothing_differs_nothing_more_is_run() -> None:
    assert verify(best, 4) == FRESH_INPUTS + 2 + REPLAYS


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_another_answer_is_wrong(rows: int) -> None:
    with pytest.raises(VerificationError, match=r"values are (neither eager's nor float64's|never right)"):
        verify(worst, rows)


def test_a_row_that_is_never_right_is_found_among_many() -> None:
    def spoil(_replay: int, outputs: Sequence[Tensor]) -> None:
        outputs[0][31] = 100

    torch.manual_seed(0)
    with pytest.raises(VerificationError, match="1 of 32 values are never right"):
        verify(best, 32, spoil)


def tallied(wrong: list[int], eager_wrong: list[int], places: int) -> Tally:
    """Of one input each, so many wrong, at places that change."""
    tally = Tally()
    for turn, (ours, eager) in enumerate(zip(wrong, eager_wrong, strict=True)):
        ref = torch.zeros(places, dtype=torch.int64)
        out, own = ref.clone(), ref.clone()
        out[:ours], own[places - eager :] = 1, 2
        tally.add(out.roll(turn), own.roll(turn), ref)
    return tally


def test_few_may_be_wrong_and_more_where_eager_is() -> None:
    assert tallied([SLACK], [0], 100).fault == ""
    assert tallied([SLACK + 1], [0], 100).fault.startswith("9 of 100 values are neither eager's nor float64's")
    assert tallied([SLACK + int(TIMES)], [1], 100).fault == ""
    assert tallied([SLACK + int(TIMES) + 1], [1], 100).fault


def test_more_inputs_are_wanted_until_enough_were_seen() -> None:
    assert not tallied([0], [0], 1).undecided
    assert tallied([1], [0], 1).undecided
    assert tallied([1, *[0] * (RUNS - 2)], [0] * (RUNS - 1), VALUES).undecided
    assert not tallied([1, *[0] * (RUNS - 1)], [0] * RUNS, VALUES).undecided
    assert tallied([1, *[0] * (RUNS - 1)], [0] * RUNS, VALUES // RUNS - 1).undecided


def test_no_place_may_always_be_wrong_but_where_eager_often_is() -> None:
    ref = torch.zeros(100, dtype=torch.int64)
    out, rounded, often = ref.clone(), ref.clone(), ref.clone()
    out[0], rounded[50:60], often[0] = 1, 2, 2
    never, excused = Tally(), Tally()
    for turn in range(RUNS):
        assert never.fault == ""
        never.add(out, rounded, ref)
        excused.add(out, often if turn % 2 else rounded, ref)
    assert never.fault == "1 of 100 values are never right"
    assert excused.fault == ""


def test_what_is_eager_s_or_float64_s_is_right() -> None:
    tally = Tally()
    tally.add(torch.tensor([1, 2, 3]), torch.tensor([1, 0, 0]), torch.tensor([0, 2, 0]))
    assert isinstance(tally.wrong, Tensor)
    assert tally.wrong.tolist() == [0, 0, 1]
