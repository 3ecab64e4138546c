"""Outputs' names and structure, and modules that cannot be served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine.errors import ModelError
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.spec import TensorSpec
from tests.engine.models import IMAGE, ROW, ConvBranches, Function, Pair


def flat(module: nn.Module, specs: tuple[TensorSpec, ...] = ROW, rows: int = 4) -> FlatModule:
    return FlatModule(module, specs, rows, torch.device("cpu"), channels_last=False)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x, ["output"]),
        (lambda x: (x,), ["output"]),
        (lambda x: [x, x], ["output0", "output1"]),
        (lambda x: {"logits": x, "hidden": x}, ["logits", "hidden"]),
        (lambda x: {"a": {"b": x}, "c": (x, None, x)}, ["a_b", "c_0", "c_2"]),
        (lambda x: Pair(x, x), ["first", "second"]),
        (lambda x: (None, x, 3, x), ["output1", "output3"]),
        (lambda x: (x, {"b": [x]}), ["output0", "output1_b_0"]),
    ],
)
def test_names(function: Callable[[Tensor], Any], names: list[str]) -> None:
    assert [spec.name for spec in flat(Function(function).eval()).outputs] == names


def test_outputs_that_are_no_tensors_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    flat(Function(lambda x: {"y": x, "version": 3, "cache": None}).eval())
    assert caplog.messages == ["output 'version' is a int, no tensor: clients do not get it, and it must not change"]


def test_specs_have_no_batch_dimension() -> None:
    module = flat(ConvBranches().eval(), IMAGE)
    assert module.outputs == (TensorSpec("logits", "float32", (5,)), TensorSpec("best_0", "int64", ()))


def test_rebuild_gives_the_modules_own_structure() -> None:
    module = flat(ConvBranches().eval(), IMAGE)
    logits, best = module(torch.randn(2, 3, 8, 8))
    assert module.rebuild([logits, best]) == {"logits": logits, "best": [best, None], "version": 3}
    pair = flat(Function(lambda x: Pair(x, x + 1)).eval())
    assert isinstance(pair.rebuild(pair(torch.zeros(4, 8))), Pair)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Function(lambda x: x).train(), r"training mode: call model\.eval\(\) first"),
        (nn.Sequential(nn.Identity().eval(), nn.Dropout()), "training mode"),
        (Function(lambda x: x.sum()).eval(), r"output 'output' has shape \[\] for 4 rows"),
        (Function(lambda x: x.t()).eval(), r"output 'output' has shape \[8, 4\] for 4 rows"),
        (Function(lambda x: {"y": x, "loss": x.mean()}).eval(), "output 'loss' has shape"),
        (Function(lambda x: x @ x).eval(), "fails on 4 random rows: RuntimeError: mat1 and mat2"),
        (
            Function(lambda x: {"x": x}["nokey"]).eval(),
            r"rows: KeyError: 'nokey' \(at .*/test_flat_module\.py:\d+ in <lambda>",
        ),
        (nn.Linear(8, 8).half().eval(), r"; inputs are float32, weights float16: each input has a dtype of its own$"),
        (nn.Linear(9, 8).eval(), r"multiplied[^;]*$"),
        (Function(len).eval(), "returns no tensor"),
        (Function(lambda x: x.to(torch.complex64)).eval(), "output 'output' is complex64, not one of"),
    ],
)
def test_what_cannot_be_served(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        flat(module)


def test_no_inputs() -> None:
    with pytest.raises(ModelError, match="takes no tensor"):
        flat(Function(lambda: torch.zeros(4)).eval(), ())


def test_one_part_left_in_training_mode_is_noticed() -> None:
    module = ConvBranches().eval()
    module.drop.train()
    with pytest.raises(ModelError, match="training mode"):
        flat(module, IMAGE)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.squeeze(), r"change with the batch size: .*\(8,\), 'float32'.* for 1 rows"),
        (lambda x: x.view(4, 8), r"forward fails on 1 random rows: RuntimeError: shape '\[4, 8\]' is invalid"),
        (lambda x: x.int() if x.shape[0] == 1 else x, "change with the batch size"),
        (lambda x: (x, x)[: x.shape[0]], "change with the batch size"),
    ],
)
def test_other_batch_sizes_must_give_the_same_outputs(function: Callable[[Tensor], Any], message: str) -> None:
    module = flat(Function(function).eval())
    module.check(4)
    with pytest.raises(ModelError, match=message):
        module.check(1)


class Sparse(nn.Module):
    neighbours: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("neighbours", torch.eye(8).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.neighbours)


def test_sparse_weights_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="'neighbours' is a sparse_coo tensor: weights must be dense"):
        flat(Sparse().eval())


@pytest.mark.parametrize("function", [lambda x: x[:, : 1 + int(x[0, 0])], lambda x: (x, x) if x[0, 0] > 0 else (x,)])
def test_outputs_that_change_with_the_content_are_refused(function: Callable[[Tensor], Any]) -> None:
    module = flat(Function(function).eval(), (replace(ROW[0], low=0.0, high=0.5),))
    module(torch.full((3, 8), 0.25))
    with pytest.raises(ModelError, match="the outputs change with what the inputs hold"):
        module(torch.full((3, 8), 1.25) if len(module.outputs) == 1 else torch.zeros(3, 8))
