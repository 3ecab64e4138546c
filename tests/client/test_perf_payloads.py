from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opara_client.inputs import InputError
from opara_client.models import TensorSpec
from opara_client.perf_payloads import Inputs, Wanted, make_payloads, parse_shapes, read_files

X = TensorSpec("x", "float32", (-1, 2), 0.0, 1.0)
TOKENS = TensorSpec("tokens", "int64", (-1, -1))
FIXED = TensorSpec("x", "float32", (3, 2))
ROWS = np.arange(10, dtype=np.float32).reshape(5, 2)


def make(
    *specs: TensorSpec,
    files: Inputs | None = None,
    shapes: dict[str, tuple[int, ...]] | None = None,
    rows: int = 1,
    count: int = 3,
) -> list[Inputs]:
    return make_payloads(specs, Wanted(files or {}, shapes or {}, rows, count))


def test_random_payloads_differ_and_are_the_same_every_time() -> None:
    first, again = make(X, rows=4), make(X, rows=4)
    assert [payload["x"].shape for payload in first] == 3 * [(4, 2)]
    assert len({payload["x"].tobytes() for payload in first}) == 3
    assert [payload["x"].tobytes() for payload in first] == [payload["x"].tobytes() for payload in again]
    assert all(payload["x"].min() >= 0 and payload["x"].max() < 1 for payload in first)


def test_a_file_is_cut_into_requests_and_its_rest_is_left() -> None:
    payloads = make(X, files={"x": ROWS}, rows=2, count=99)
    assert [payload["x"].tolist() for payload in payloads] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_what_is_not_in_a_file_is_random() -> None:
    payloads = make(X, TOKENS, files={"x": ROWS}, shapes={"tokens": (7,)})
    assert [payload["tokens"].shape for payload in payloads] == 5 * [(1, 7)]


def test_a_model_without_a_batch_dimension_takes_a_file_as_it_is() -> None:
    assert [payload["x"].shape for payload in make(FIXED, count=2)] == 2 * [(3, 2)]
    assert [payload["x"].shape for payload in make(FIXED, files={"x": ROWS[:3]})] == [(3, 2)]


def test_of_a_model_that_declares_nothing_the_files_say_it_all() -> None:
    assert len(make(files={"x": ROWS})) == 5


@pytest.mark.parametrize(
    ("specs", "given", "message"),
    [
        ([TOKENS], {}, r"input 'tokens': the model leaves \[-1, -1\] open: give --shape tokens=SIZE,..."),
        ([X], {"files": {"y": ROWS}}, "the model has no input 'y'; it has x"),
        ([X], {"shapes": {"y": (1,)}}, "the model has no input 'y'; it has x"),
        ([X], {"files": {"x": ROWS.astype(np.float64)}}, "input 'x': expected float32, got float64"),
        ([X], {"files": {"x": ROWS}, "rows": 6}, "input 'x': its file has not the 6 rows of a request"),
        ([X], {"files": {"x": np.float32(1)}}, "input 'x': its file has not the 1 row of a request"),
        ([FIXED], {"rows": 2}, "--rows 2: the model has no batch dimension"),
        ([TensorSpec("x", "BYTES", (-1, 1))], {}, "input 'x': BYTES is not supported"),
        ([], {}, "the server does not say what the model takes"),
        ([], {"files": {"x": ROWS, "y": ROWS[1:]}}, "the inputs' files do not have the same number of rows"),
    ],
)
def test_what_cannot_be_made(specs: list[TensorSpec], given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(*specs, **given)  # type: ignore[arg-type]


def test_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    np.savez(tmp_path / "b.npz", y=ROWS, z=ROWS)
    arrays = read_files([f"x=@{tmp_path}/a.npy", f"@{tmp_path}/b.npz"])
    assert arrays.keys() == {"x", "y", "z"}
    np.testing.assert_array_equal(arrays["z"], ROWS)
    with pytest.raises(InputError, match=r"a.npy: holds one array without a name, expected several \(.npz\)"):
        read_files([f"@{tmp_path}/a.npy"])
    with pytest.raises(InputError, match=r"b.npz: holds several arrays, expected one \(.npy\)"):
        read_files([f"x=@{tmp_path}/b.npz"])
    with pytest.raises(InputError, match="'y' was given before"):
        read_files([f"y=@{tmp_path}/a.npy", f"@{tmp_path}/b.npz"])


@pytest.mark.parametrize("argument", ["x", "x=1", "=@a.npy", "x@a.npy", "x=@", "@"])
def test_wrong_arguments_for_files(argument: str) -> None:
    with pytest.raises(InputError, match=r"expected NAME=@FILE\.npy or @FILE\.npz"):
        read_files([argument])


def test_shapes() -> None:
    assert parse_shapes(["x=1,2", "y=3"]) == {"x": (1, 2), "y": (3,)}


@pytest.mark.parametrize("argument", ["x", "x=", "=1", "x=a", "x=-1"])
def test_wrong_shapes(argument: str) -> None:
    with pytest.raises(InputError, match="expected NAME=SIZE,SIZE,"):
        parse_shapes([argument])
