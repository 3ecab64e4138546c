"""Which programs are made of a model's exports; tests/gpu/test_fused.py has real ones of fused kernels."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from opara_server.engine import lowerings
from opara_server.engine.errors import LoweringError
from opara_server.engine.export import export_all
from opara_server.engine.lower_aten import lower
from opara_server.engine.lower_fused import NoVariantError
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
        assert len(list(made.fused(rows, inputs[rows], ["fused", "fused_combo"]))) == 2
    assert all(one is other for one, other in zip(given[::2], given[1::2], strict=True))
    shapes = [[tuple(node.meta["val"].shape) for node in one.graph.find_nodes(op="placeholder")] for one in given]
    assert all(type(size) is int for found in shapes for shape in found for size in shape)
    assert [found[-1] for found in shapes] == [(rows, 8) for rows in buckets for _ in range(2)]


class Chosen(nn.Module):
    """With a convolution that has a plan."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_empty(x.shape[0], 4, 1, 1)
        image = x[:, :, None, None]
        torch.ops.opara.convolution(image, self.weight, None, None, [1, 1], [0, 0], [1, 1], 1, False, "", out)
        return out


COMPANY = ("fused_company", "fused_rewritten", "fused_company", "fused_company_combo")


@pytest.mark.parametrize(
    ("module", "made"),
    [(Chosen(), COMPANY), (nn.Linear(8, 4), ("fused_company", "fused_rewritten", "fused_company_combo"))],
    ids=["plans", "no plans"],
)
def test_nothing_is_made_for_company_where_nothing_chooses_plans_for_it(
    monkeypatch: pytest.MonkeyPatch, module: nn.Module, made: tuple[str, ...]
) -> None:
    """Nobody knows before the other has been made."""

    def lower_fused(exported: ExportedProgram, inputs: list[Tensor], lowering: str, _weights: object) -> Program:
        return replace(lower(exported, inputs), lowering=lowering)

    monkeypatch.setattr(lowerings, "lower_fused", lower_fused)
    inputs = {1: [torch.randn(1, 8)]}
    found = Lowerings("small", export_all(module.eval(), inputs)).fused(1, inputs[1], COMPANY)
    assert tuple(program.lowering for program in found) == made


def refusing(monkeypatch: pytest.MonkeyPatch, *errors: LoweringError) -> list[str]:
    """What fails in turn; returns what is asked for."""
    asked: list[str] = []
    left = list(errors)

    def lower_fused(_exported: ExportedProgram, _inputs: list[Tensor], lowering: str, _weights: object) -> Program:
        asked.append(lowering)
        raise left.pop(0)

    monkeypatch.setattr(lowerings, "lower_fused", lower_fused)
    return asked


def all_of(*names: str) -> None:
    inputs = {rows: [torch.randn(rows, 8)] for rows in (1, 4)}
    made = Lowerings("small", export_all(nn.Linear(8, 4).eval(), inputs))
    for rows in (4, 1):
        assert not list(made.fused(rows, inputs[rows], names))


def test_each_reason_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    reasons = ["a custom operator", "a custom operator", "too large"]
    asked = refusing(monkeypatch, *map(LoweringError, reasons * 2))
    all_of("fused", "fused_combo", "fused_epilogues")
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "small: no fused lowering: a custom operator",
        "small: no fused_epilogues lowering: too large",
    ]
    assert asked == ["fused", "fused_combo", "fused_epilogues"] * 2, "what one batch size cannot have others may"


def test_where_none_can_be_had_the_others_are_not_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = refusing(monkeypatch, NoVariantError("there is no Triton"))
    all_of("fused", "fused_combo", "fused_epilogues")
    assert asked == ["fused"]
    assert caplog.text.count("there is no Triton") == 1
