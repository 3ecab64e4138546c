"""Complex numbers on the way: views that conjugate or negate share memory with what they are not equal to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine.export import export_static
from opara_server.engine.lower_aten import lower
from opara_server.engine.rewrites import Weights, apply, functional

CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross-correlation": lambda y: torch.fft.irfft(y * y.flip(0).conj()),
    "conjugate as it is": lambda y: (y * y.conj()).real,
    "imaginary part of it": lambda y: y.conj().imag + 0,
    "imaginary part as output": lambda y: y.conj().imag,
    "some of its columns": lambda y: (y.conj()[:, 1:3] * 2).imag,
    "resolved": lambda y: y.conj().resolve_conj().imag + 0,
    "adjoint": lambda y: (y @ y.mH).real,
    "negative view": lambda y: torch._neg_view(y.real) + 1,
    "negative view as output": lambda y: torch._neg_view(y.real),
    "negative, resolved": lambda y: y.conj().imag.resolve_neg() + 1,
    "changed in place": lambda y: y.clone().conj().mul_(2).imag + 0,
    "parts of a view as real": lambda y: torch.stack(torch.view_as_real(y).unbind(-1)).sum(0),
    "chunks of a view as real": lambda y: torch.view_as_real(y).chunk(2, -1)[1] + 1,
    "chunks of the conjugate": lambda y: y.conj().chunk(2, -1)[0].abs(),
    "splits of the real part": lambda y: (y * y).real.split(2, -1)[1] + 1,
}


class Spectrum(nn.Module):
    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return self.of(torch.fft.fft(x))


@pytest.mark.parametrize("name", CASES)
def test_what_conjugates_or_negates_is_not_its_base(name: str) -> None:
    torch.manual_seed(0)
    module, x = Spectrum(CASES[name]).eval(), torch.randn(3, 4)
    with torch.inference_mode():
        program = lower(export_static(module, (x,)), (x,))
        (found,) = program.run_in_order()
        torch.testing.assert_close(found, module(x))
    assert not found.is_neg()
    assert not found.is_conj()


class Conjugates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, dtype=torch.complex64), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.complex(x, x)
        return (z + self.w.clone() * 2).abs(), (z + self.w.conj() * 2).abs()


def test_a_weight_and_its_conjugate_are_two_constants() -> None:
    torch.manual_seed(0)
    module, x = Conjugates().eval(), torch.randn(3, 4)
    folded = apply(functional(export_static(module, (x,))), ("fold_constants",), Weights())
    for found, expected in zip(folded(x), module(x), strict=True):
        torch.testing.assert_close(found, expected)
