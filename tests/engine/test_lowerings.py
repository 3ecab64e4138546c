"""Which programs are made of a model's exports; tests/gpu/test_fused.py has real ones of fused kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from opara_server.engine import lowerings
from opara_server.engine.export import export_all
from opara_server.engine.lower_aten import lower
from opara_server.engine.lowerings import Lowerings
from opara_server.engine.program import Program


@pytest.mark.parametrize("buckets", [(1, 4), (4,), (1, 3, 4)], ids=str)
def test_fused_kernels_are_made_of_a_program_of_fixed_shapes(
    monkeypatch: pytest.MonkeyPatch, buckets: tuple[int, ...]
) -> None:
    """Also where one batch size alone has the export that is for all."""
    given: list[ExportedProgram] = []

    def lower_fused(exported: ExportedProgram, inputs: list[Tensor], *_: object) -> Program:
        given.append(exported)
        return lower(exported, inputs)

    monkeypatch.setattr(lowerings, "lower_fused", lower_fused)
    module = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).eval()
    inputs = {rows: [torch.randn(rows, 8)] for rows in buckets}
    made = Lowerings("small", export_all(module, inputs))
    for rows in buckets:
        assert len(list(made.fused(rows, inputs[rows], ["fused"]))) == 1
    shapes = [[tuple(node.meta["val"].shape) for node in one.graph.find_nodes(op="placeholder")] for one in given]
    assert all(type(size) is int for found in shapes for shape in found for size in shape)
    assert [found[-1] for found in shapes] == [(rows, 8) for rows in buckets]
