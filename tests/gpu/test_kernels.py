"""The operators of the rewrites on the GPU, against the same formulas on the CPU in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from opara_server.engine.rewrites.attention_operator import attention
from opara_server.engine.rewrites.depthwise_operator import depthwise
from opara_server.engine.rewrites.depthwise_tile import Layer, tile
from opara_server.engine.verify import error_norm

CHANNELS_LAST = torch.channels_last
BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}  # relative error norms

Operator = Callable[..., Tensor]


def check(operator: Operator, dtype: torch.dtype, *arguments: Any, bound: float = 0) -> Tensor:
    """On the GPU; its result as the CPU has it in float64, or this fails. ``bound``: where BOUNDS are too close."""
    there = [argument.cuda() if isinstance(argument, Tensor) else argument for argument in arguments]
    exact = [argument.double() if isinstance(argument, Tensor) else argument for argument in arguments]
    out, expected = operator(*there), operator(*exact)
    assert out.dtype == dtype
    assert out.shape == expected.shape
    assert error_norm(out, expected.cuda()) < max(bound, BOUNDS[dtype])
    return out


LAYERS = [  # of NASNet-A-large: channels, side, taps, stride
    (168, 42, 5, 1, torch.float16),
    (336, 21, 7, 1, torch.float16),
    (96, 165, 5, 2, torch.float16),
    (42, 83, 3, 1, torch.bfloat16),
    (672, 11, 3, 1, torch.float32),
    (672, 11, 5, 1, torch.float16),
]


@pytest.mark.parametrize(("channels", "side", "taps", "stride", "dtype"), LAYERS, ids=str)
@pytest.mark.parametrize("whole", [False, True])
def test_depthwise(channels: int, side: int, taps: int, stride: int, dtype: torch.dtype, whole: bool) -> None:
    size, biases = [-(-side // stride)] * 2, [torch.randn(channels) if whole else None for _ in range(2)]
    x = torch.randn(1 if whole else 3, channels, side, side).to(dtype, memory_format=CHANNELS_LAST)
    geometry = ([stride] * 2, [taps // 2] * 2, [1, 1], size)
    out = check(depthwise, dtype, x, torch.randn(taps, taps, channels), *biases, *geometry, whole, whole)
    assert out.is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize(("channels", "relu"), [(3, False), (64, True)])
def test_depthwise_of_unusual_shapes(channels: int, relu: bool) -> None:
    """Sides, filters, strides, paddings and dilations that differ, and a bias that the padding does not get."""
    x, bias = torch.randn(2, channels, 13, 18).to(memory_format=CHANNELS_LAST), torch.randn(channels)
    check(
        depthwise,
        x.dtype,
        x,
        torch.randn(3, 5, channels),
        bias,
        bias,
        [2, 1],
        [0, 3],
        [1, 2],
        [6, 16],
        relu,
        relu,
    )
    check(
        depthwise,
        x.dtype,
        x,
        torch.randn(1, 7, channels),
        None,
        bias,
        [1, 3],
        [2, 1],
        [1, 1],
        [15, 6],
        relu,
        False,
    )


def test_depthwise_keeps_nan_and_copies_what_is_not_channels_last() -> None:
    x = torch.randn(1, 8, 6, 6)
    x[0, 3, 2, 2] = float("nan")
    arguments = (torch.ones(3, 3, 8), None, None, [1, 1], [1, 1], [1, 1], [6, 6], True, True)
    out = depthwise(x.cuda(), *[a.cuda() if isinstance(a, Tensor) else a for a in arguments]).cpu()
    torch.testing.assert_close(out, depthwise(x, *arguments), equal_nan=True)
    assert int(out.isnan().sum()) == 9


WINDOWS = [  # taps, stride, dilation
    ((3, 3), (1, 1), (1, 1)),
    ((5, 5), (1, 2), (2, 1)),
    ((7, 5), (2, 1), (1, 2)),
    ((1, 9), (1, 3), (2, 1)),
]
MULTIPROCESSORS = (1, 2, 8, 32)  # of devices that have from much to hardly anything to do with a layer


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("taps", "stride", "dilation"), WINDOWS, ids=str)
def test_all_depthwise_tiles_compute_the_same(
    taps: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], relu: bool
) -> None:
    """All that the rule chooses for such layers. Channels that do not fill the last tile, places that do not fill the
    last one of a line."""
    from opara_server.engine.rewrites.depthwise_kernel import triton_call  # noqa: PLC0415 - needs Triton

    x, weight = torch.randn(8, 40, 9, 23).half().to(memory_format=CHANNELS_LAST), torch.randn(*taps, 40)
    bias, x_bias = torch.randn(40), torch.randn(40)
    layer = Layer(8, 40, (9, 23), (5, 7), taps, stride, (1, 2), dilation, relu, relu, x.itemsize)
    exact = [tensor.double() for tensor in (x, weight, bias, x_bias)]
    expected = depthwise(*exact, list(stride), [1, 2], list(dilation), [5, 7], relu, relu)
    for chosen in {tile(layer, count) for count in MULTIPROCESSORS}:
        out = torch.full((8, 40, 5, 7), torch.nan, dtype=x.dtype, device="cuda").to(memory_format=CHANNELS_LAST)
        triton_call(x.cuda(), weight.cuda(), bias.cuda(), x_bias.cuda(), out, layer, chosen).run()
        assert error_norm(out, expected.cuda()) < BOUNDS[x.dtype], chosen


ATTENTIONS = [  # rows, heads, queries, keys, width; ours in one step, in several, of padded sides; then PyTorch's
    (1, 8, 128, 128, 64),
    (2, 8, 32, 128, 64),
    (1, 12, 197, 197, 64),
    (1, 2, 70, 500, 64),
    (1, 3, 90, 300, 128),
    (3, 2, 5, 7, 24),
    (2, 2, 16, 16, 16),
    (1, 2, 600, 1200, 64),
    (1, 2, 40, 40, 160),
]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("shape", ATTENTIONS, ids=str)
def test_attention(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Biases that are broadcast, hide scores, and have more columns than there are keys, whose content is not read."""
    rows, heads, queries, keys, width = shape
    columns = -(-keys // 8) * 8
    query, key, val = (torch.randn(rows, n, heads, width).transpose(1, 2).to(dtype) for n in (queries, keys, keys))
    for lead in ((1, heads, queries), (rows, 1, 1), (rows, heads, queries)):
        bias = torch.randn(*lead, columns).masked_fill_(torch.rand(*lead, columns) < 0.2, -torch.inf).to(dtype)
        bias[..., 0], bias[..., keys:] = 0, torch.nan
        out = check(attention, dtype, query, key, val, bias, False, 0.2, bound=1e-3)  # TF32
        assert out.transpose(1, 2).is_contiguous()
    for causal in (False, True):
        check(attention, dtype, query, key, val, None, causal, None, bound=1e-3)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("rows", "keys"), [(1, 48), (1, 1200)], ids=["ours", "PyTorch's"])
def test_attention_of_what_sees_nothing_and_of_nan(rows: int, keys: int, dtype: torch.dtype) -> None:
    query, key, val = (torch.randn(rows, n, 2, 64).transpose(1, 2).to(dtype) for n in (40, keys, keys))
    bias = torch.randn(rows, 2, 40, keys).to(dtype)
    bias[:, 0, 3] = -torch.inf
    bias[:, 1, 9, 2] = torch.nan
    query[:, 1, 5, 7] = torch.nan
    out = attention(query.cuda(), key.cuda(), val.cuda(), bias.cuda(), False, None).cpu()
    assert out[:, 0, 3].count_nonzero() == 0
    hurt = torch.zeros(2, 40, dtype=torch.bool)
    hurt[1, [5, 9]] = True
    assert torch.equal(out.isnan().all(3), hurt.expand(rows, 2, 40))
    assert torch.equal(out.isnan().any(3), hurt.expand(rows, 2, 40))


def test_attention_of_views_of_one_tensor() -> None:
    """As a fused projection gives them, and laid out so that heads have to be copied."""
    query, key, val = torch.randn(2, 50, 3, 4, 32).half().permute(2, 0, 3, 1, 4)
    check(attention, torch.float16, query, key, val, None, False, None)
    query, key, val = torch.randn(2, 3, 4, 32, 50).half().permute(1, 0, 2, 4, 3)
    check(attention, torch.float16, query, key, val, None, False, None)
