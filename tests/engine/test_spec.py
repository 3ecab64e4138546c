"""Specs of tensors."""

from __future__ import annotations

import pytest

from opara_server.engine.spec import TensorSpec


@pytest.mark.parametrize(
    ("low", "high", "padding"), [(None, None, 0), (0, 10, 0), (-3, 4, 0), (5, 9, 5), (-9, 0, -9), (0.5, 1.0, 0.5)]
)
def test_padding_lies_in_the_range(low: float | None, high: float | None, padding: float) -> None:
    assert TensorSpec("x", "float32", (2,), low, high).padding == padding


@pytest.mark.parametrize(
    ("dtype", "shape", "message"), [("complex64", (2,), "dtype 'complex64'"), ("float32", (2, -1), "negative size")]
)
def test_what_no_tensor_can_be(dtype: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorSpec("x", dtype, shape)


def test_bytes_of_a_row() -> None:
    assert TensorSpec("x", "bfloat16", (3, 4)).row_bytes == 24
    assert TensorSpec("x", "int64", ()).row_bytes == 8
    assert TensorSpec("x", "int64", (3, 0)).row_bytes == 0
