"""Where a CPU graph leaves its results, and how long they stay there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from opara_server.engine.capture import capture
from opara_server.engine.cpu_graph import KEPT_BYTES
from opara_server.engine.device_cpu import CpuDevice
from opara_server.engine.schedule import assemble
from tests.engine.programs import program_of

REPLAYS = 4


def test_answers_can_be_read_where_a_graph_leaves_them(device: CpuDevice) -> None:
    program = program_of((lambda x: (x + 0).t(), [0]))  # columns, as they lie
    graph = capture(program, assemble("test", program.graph, [0], [0]), device)
    program.inputs[0].copy_(torch.arange(8).view(2, 4))
    graph.replay()
    memory = device.mapped(graph.outputs[0])
    assert memory is not None
    assert memory.data_ptr() == graph.outputs[0].data_ptr()
    assert memory.view(graph.outputs[0].dtype).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert device.mapped(torch.empty(2, 3).t()) is None


WIDE = KEPT_BYTES // 8  # of so many elements two rows are handed over


@pytest.mark.parametrize("streams", [1, 2])
def test_large_results_take_the_place_of_the_last_and_are_nobodys_but_their_readers(
    device: CpuDevice, streams: int
) -> None:
    program = program_of((lambda x: x.repeat(1, WIDE), [0]), (lambda x: x + 1, [0]), outputs=[1, 2])
    schedule = assemble("test", program.graph, range(2), range(2) if streams == 2 else [0, 0])
    graph = capture(program, schedule, device)
    assert graph.fresh == {0}
    held, small = [], graph.outputs[1]
    for number in range(REPLAYS):
        program.inputs[0].fill_(number)
        graph.replay()
        held.append(graph.outputs[0])
        assert graph.outputs[1] is small
        assert small.unique().tolist() == [number + 1]
    assert [output.unique().tolist() for output in held] == [[number] for number in range(REPLAYS)]
    assert device.mapped(held[0]) is not None


ALWAYS = torch.arange(2 * WIDE).view(2, WIDE)


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(lambda _: ALWAYS, id="the same tensor"),
        pytest.param(lambda _: ALWAYS.view(2 * WIDE), id="a view of it"),
        pytest.param(lambda x: x.repeat(1, WIDE).t(), id="columns"),
        pytest.param(lambda x: x + 0, id="a small one"),
    ],
)
def test_what_is_not_made_anew_in_rows_and_large_is_copied(
    device: CpuDevice, result: Callable[[Tensor], Tensor]
) -> None:
    program = program_of((result, [0]))
    graph = capture(program, assemble("test", program.graph, [0], [0]), device)
    assert not graph.fresh
    (output,) = graph.outputs
    graph.replay()
    assert graph.outputs[0] is output
    assert output.data_ptr() != ALWAYS.data_ptr()
    assert torch.equal(output, result(program.inputs[0]))
