"""linear_epilogues against eager."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.engine.rewriting import TORCH_WARNS, operators, rewritten, settled

pytestmark = TORCH_WARNS


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU()], ids=str)
@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_activation_are_one(act: nn.Module, shape: tuple[int, ...], bias: bool) -> None:
    module = settled(nn.Sequential(nn.Linear(8, 6, bias), act))
    assert operators(rewritten(module, (torch.randn(shape),), "linear_epilogues"))["_addmm_activation"] == 1


class Sum(nn.Module):
    """What comes between is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y.relu() + y


@pytest.mark.parametrize(
    "module",
    [Sum(), nn.Sequential(nn.Linear(8, 8), nn.SiLU()), nn.Sequential(nn.Linear(8, 8), nn.GELU("tanh"))],
    ids=["read twice", "another activation", "the GELU that this device does not fuse"],
)
def test_what_the_kernel_does_not_compute_stays(module: nn.Module) -> None:
    assert "_addmm_activation" not in operators(rewritten(settled(module), (torch.randn(5, 8),), "linear_epilogues"))
