"""Regions against the bytes that they name, one by one."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opara_server.engine.regions import Touches, region


@st.composite
def views(draw: st.DrawFn) -> Tensor:
    """A view of the 64 elements of a storage, without overlaps in itself or with a dimension that was expanded."""
    tensor = torch.arange(64).reshape(draw(st.sampled_from([(64,), (8, 8), (4, 4, 4), (2, 4, 8)])))
    for dim in range(tensor.dim()):
        begin = draw(st.integers(0, tensor.shape[dim] - 1))
        length = draw(st.integers(1, tensor.shape[dim] - begin))
        tensor = tensor.narrow(dim, begin, length)
    if draw(st.booleans()):
        tensor = tensor.transpose(0, -1)
    return tensor.unsqueeze(0).expand(3, *tensor.shape) if draw(st.booleans()) else tensor


@settings(deadline=None, max_examples=300)
@given(views(), views())
def test_parts_are_those_of_the_elements(one: Tensor, other: Tensor) -> None:
    ones, others = set(one.flatten().tolist()), set(other.flatten().tolist())
    touches = Touches([{0: frozenset([region(one)])}, {0: frozenset([region(other)])}])
    if touches.apart(0, 1, buffer=0):
        assert not ones & others
    elif (
        not ones & others
    ):  # it may be too careful only where one has no gaps, hence the other could hold it in its own
        assert region(one).gapless or region(other).gapless
    if touches.covers(0, 1, buffer=0):
        assert ones <= others


def test_channels_of_one_tensor_in_channels_last_are_apart() -> None:
    whole = torch.empty(2, 10, 4, 4).to(memory_format=torch.channels_last)
    left, right, middle = whole[:, :4], whole[:, 4:], whole[:, 3:5]
    touches = Touches([{0: frozenset([region(tensor)])} for tensor in (left, right, middle)] + [{}])
    assert touches.apart(0, 1, buffer=0)
    assert not touches.apart(0, 2, buffer=0)
    assert not touches.apart(0, 3, buffer=0)
    assert touches.covers(0, 3, buffer=0)
    assert not touches.covers(3, 0, buffer=0)


def test_elements_of_another_size_are_never_apart() -> None:
    storage = torch.zeros(8, dtype=torch.int32)
    halves = [region(storage[:4]), region(storage.view(torch.int16)[8:])]
    assert not Touches([{0: frozenset([half])} for half in halves]).apart(0, 1, buffer=0)
