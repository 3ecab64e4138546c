from __future__ import annotations

import numpy as np
import pytest

from opara_client.errors import Internal
from opara_client.models import TensorSpec
from opara_client.perf_answers import Fault, check_first, fault
from opara_client.tensors import Array

Y = np.array([[3.0, 4.0]], np.float32)
HALF = np.array([0.0, 0.5], np.float32)
SPECS = (TensorSpec("y", "float32", (-1, 2)),)


@pytest.mark.parametrize(
    ("array", "tolerance", "expected"),
    [
        (Y + 1, None, None),
        (Y, 0.0, None),
        (Y + 1, 0.0, "values"),
        (Y + HALF, 0.101, None),  # an error norm of 0.5 / 5
        (Y + HALF, 0.099, "values"),
        (Y * np.array([1, np.nan], np.float32), 1e9, "values"),
        (Y * np.array([1, np.inf], np.float32), 1e9, "values"),
        (Y.astype(np.float64), None, "shape"),
        (Y[0], None, "shape"),
        (Y[:, :1], None, "shape"),
    ],
)
def test_fault(array: Array, tolerance: float | None, expected: Fault | None) -> None:
    assert fault({"y": array}, {"y": Y}, tolerance) == expected


@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_nan_and_infinity_are_themselves(tolerance: float) -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 1])
    assert fault({"y": odd}, {"y": odd}, tolerance) is None
    assert fault({"y": odd}, {"y": odd[[0, 2, 1, 3]]}, tolerance) == "values"


def test_whole_numbers_must_be_equal_whatever_the_tolerance() -> None:
    assert fault({"y": np.array([1000])}, {"y": np.array([1001])}, 0.5) == "values"


def test_every_output_must_be_there_and_no_other() -> None:
    assert fault({}, {"y": Y}, None) == "shape"
    assert fault({"y": Y, "z": Y}, {"y": Y}, None) == "shape"


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "the answer lacks output 'y'"),
        ({"y": Y[0]}, r"output 'y': expected shape \[1, 2\], got \[2\]"),
        ({"y": np.zeros((2, 2))}, r"expected shape \[1, 2\], got \[2, 2\]"),
        ({"y": np.zeros((1, 3))}, r"expected shape \[1, 2\], got \[1, 3\]"),
    ],
)
def test_a_first_answer_must_be_what_the_model_declares(outputs: dict[str, Array], message: str) -> None:
    with pytest.raises(Internal, match=message):
        check_first(outputs, SPECS, rows=1)


def test_open_sizes_may_be_any() -> None:
    check_first({"y": Y}, SPECS, rows=1)
    check_first({"y": np.zeros((7, 2))}, SPECS, rows=None)
    check_first({"y": np.zeros((1, 9))}, [TensorSpec("y", "float32", (-1, -1))], rows=1)
    check_first({"y": np.zeros(9)}, [], rows=1)
