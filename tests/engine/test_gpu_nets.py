"""The nets of the GPU's tests tell a wrong answer from a right one. Looked at here, without a GPU."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from opara_server.engine.spec import TensorSpec
from opara_server.engine.verify import error_norm
from tests.gpu.answers import BOUND, agreeing
from tests.gpu.nets import NETS, Separable, built, samples

ALL: dict[str, tuple[type[nn.Module], tuple[TensorSpec, ...]]] = {
    **NETS,
    "separable": (Separable, (TensorSpec("x", "float16", (3, 16, 16)),)),
}


def outputs(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return pytree.tree_leaves(module(*inputs))


def differences(outs: Sequence[Tensor], refs: Sequence[Tensor]) -> list[float]:
    return [error_norm(out, ref) for out, ref in zip(outs, refs, strict=True) if out.is_floating_point()]


@pytest.mark.parametrize("name", ALL)
def test_other_inputs_have_other_answers(name: str) -> None:
    build, inputs = ALL[name]
    module = built(build, inputs)
    assert max(differences(*(outputs(module, samples(inputs, 3)) for _ in range(2)))) > 10 * BOUND


@pytest.mark.parametrize("name", ALL)
def test_no_layer_and_no_mask_can_be_lost_unseen(name: str) -> None:
    build, inputs = ALL[name]
    module = built(build, inputs)
    rows = samples(inputs, 3)
    right = outputs(module, rows)
    for part, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dim() > 1:
            without = copy.deepcopy(module)
            dict([*without.named_parameters(), *without.named_buffers()])[part].data.zero_()
            assert max(differences(outputs(without, rows), right)) > 2 * BOUND, part


def test_digits_are_not_always_the_same() -> None:
    build, inputs = NETS["inceptions"]
    logits, digits = outputs(built(build, inputs), samples(inputs, 300))
    assert torch.equal(digits, logits.argmax(1))
    assert digits.bincount().max() < 200


def test_floats_are_compared_each_time() -> None:
    ref = torch.randn(100)
    with agreeing() as agree:
        agree([ref * (1 + BOUND / 2)], [ref])
        with pytest.raises(AssertionError):
            agree([ref * (1 + 2 * BOUND)], [ref])


@pytest.mark.parametrize("wrong", [0, 2, 3])
def test_few_integers_may_differ(wrong: int) -> None:
    def compare() -> None:
        with agreeing() as agree:
            for turn in range(10):
                agree([torch.tensor([int(turn < wrong), *[0] * 9])], [torch.zeros(10, dtype=torch.int64)])

    if wrong < 3:
        compare()
    else:
        with pytest.raises(AssertionError, match="3 of 100 integers"):
            compare()
