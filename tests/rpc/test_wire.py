"""What the wire refuses, what it says about it, and that every element type travels both ways."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opara_protos.v1 import inference_pb2 as pb
from opara_server.engine.spec import TensorSpec
from opara_server.rpc import wire
from opara_server.serving.errors import InvalidInput
from opara_server.serving.rows import Rows

IMAGE = TensorSpec("image", "float32", (2, 3))
MASK = TensorSpec("mask", "bool", ())
SPECS = (IMAGE, MASK)
MAX_ROWS = 4


def tensor(spec: TensorSpec, rows: int = 2, **changes: Any) -> pb.Tensor:
    """A good tensor for ``spec``, but for ``changes``."""
    fields: dict[str, Any] = {
        "name": spec.name,
        "data_type": wire.DATA_TYPES[spec.dtype],
        "shape": (rows, *spec.shape),
        "data": bytes(rows * spec.row_bytes),
    }
    return pb.Tensor(**(fields | changes))


def request(*tensors: pb.Tensor, outputs: tuple[str, ...] = ()) -> pb.InferRequest:
    return pb.InferRequest(model="m", id="7", inputs=tensors, outputs=outputs)


def refusal(*tensors: pb.Tensor) -> str:
    with pytest.raises(InvalidInput) as caught:
        wire.decode(request(*tensors), SPECS, MAX_ROWS)
    return str(caught.value)


def test_tensors_come_in_the_order_of_the_model() -> None:
    image = np.arange(12, dtype=np.float32).tobytes()
    rows = wire.decode(request(tensor(MASK, data=b"\0\1"), tensor(IMAGE, data=image)), SPECS, MAX_ROWS)
    assert rows == Rows((image, b"\0\1"), 2)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        pytest.param([tensor(IMAGE)], "missing input: 'mask'", id="missing"),
        pytest.param([], "missing input: 'image', 'mask'", id="no inputs"),
        pytest.param(
            [tensor(IMAGE), tensor(MASK), tensor(MASK, name="more")],
            "unknown input 'more': the model takes 'image', 'mask'",
            id="extra",
        ),
        pytest.param([tensor(IMAGE), tensor(IMAGE)], "input 'image' came more than once", id="duplicate"),
        pytest.param(
            [tensor(IMAGE, data_type=pb.DATA_TYPE_INT64)], "input 'image': expected float32, got int64", id="data type"
        ),
        pytest.param(
            [tensor(IMAGE, data_type=0)], "input 'image': expected float32, got data type 0", id="no data type"
        ),
        pytest.param(
            [tensor(IMAGE, shape=(2, 6))], "input 'image': expected shape [rows, 2, 3], got [2, 6]", id="rank"
        ),
        pytest.param(
            [tensor(IMAGE, shape=(2, 3, 2))], "input 'image': expected shape [rows, 2, 3], got [2, 3, 2]", id="shape"
        ),
        pytest.param([tensor(IMAGE, shape=())], "input 'image': expected shape [rows, 2, 3], got []", id="scalar"),
        pytest.param(
            [tensor(IMAGE, shape=[1] * 20_000)],
            "input 'image': expected shape [rows, 2, 3], got [1, 1, 1, 1, 1, 1, 1, 1, ... (20000 dimensions)]",
            id="a great many dimensions",
        ),
        pytest.param(
            [tensor(IMAGE, data=bytes(47))],
            "input 'image': expected 48 bytes of data (12 x float32), got 47",
            id="data too short",
        ),
        pytest.param(
            [tensor(IMAGE, data=bytes(52))],
            "input 'image': expected 48 bytes of data (12 x float32), got 52",
            id="data too long",
        ),
        pytest.param([tensor(IMAGE, rows=0)], "input 'image': expected 1 to 4 rows, got 0", id="zero rows"),
        pytest.param([tensor(IMAGE, rows=5)], "input 'image': expected 1 to 4 rows, got 5", id="too many rows"),
        pytest.param(
            [tensor(IMAGE, shape=(-1, 2, 3))], "input 'image': expected 1 to 4 rows, got -1", id="negative rows"
        ),
        pytest.param(
            [tensor(IMAGE, shape=(2, -2, -3))],
            "input 'image': expected shape [rows, 2, 3], got [2, -2, -3]",
            id="negative sizes whose product is right",
        ),
        pytest.param(
            [tensor(IMAGE, shape=(2**62, 2, 3), data=b"")],
            f"input 'image': expected 1 to 4 rows, got {2**62}",
            id="a product that overflows int64",
        ),
        pytest.param(
            [tensor(IMAGE, rows=2), tensor(MASK, rows=3)],
            "input 'mask' has 3 rows, but input 'image' has 2",
            id="different numbers of rows",
        ),
    ],
)
def test_bad_tensors_are_named(tensors: list[pb.Tensor], says: str) -> None:
    assert refusal(*tensors) == says


def test_what_a_client_chose_is_cut_and_escaped() -> None:
    text = refusal(tensor(IMAGE, name="\x1b[2J\n" + "é" * 100_000))
    assert len(text) < 500
    assert re.fullmatch(r"[ -~]+", text)


def test_outputs_are_chosen_by_name_in_the_order_asked_for() -> None:
    assert wire.wanted_outputs((), SPECS) == (0, 1)
    assert wire.wanted_outputs(("mask", "image"), SPECS) == (1, 0)
    with pytest.raises(InvalidInput, match=r"^unknown output 'y': the model gives 'image', 'mask'$"):
        wire.wanted_outputs(("y",), SPECS)
    with pytest.raises(InvalidInput, match=r"^output 'mask' is asked for more than once$"):
        wire.wanted_outputs(("mask", "mask"), SPECS)


@given(st.binary())
def test_arbitrary_bytes_are_a_request_or_invalid_input(message: bytes) -> None:
    for kind in (pb.InferRequest, pb.InferStreamRequest, pb.GetModelRequest, pb.ListModelsRequest):
        try:
            parsed = wire.parse(kind, message)
        except InvalidInput as error:
            assert str(error) == f"the bytes are no {kind.DESCRIPTOR.full_name}"  # noqa: PT017
        else:
            assert isinstance(parsed, kind)


NAMES = st.sampled_from(["image", "mask", "", "x" * 1000]) | st.text(max_size=8)
TENSORS = st.builds(
    pb.Tensor,
    name=NAMES,
    data_type=st.sampled_from([wire.DATA_TYPES["float32"], wire.DATA_TYPES["bool"]]) | st.integers(-1, 20),
    shape=st.sampled_from([[1, 2, 3], [2, 2, 3], [1], [2]]) | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    data=st.sampled_from([bytes(24), bytes(48), b"\0", b"\1\0"]) | st.binary(max_size=64),
)


@given(st.lists(TENSORS, max_size=4))
def test_arbitrary_tensors_are_rows_of_the_right_size_or_invalid_input(tensors: list[pb.Tensor]) -> None:
    try:
        rows = wire.decode(request(*tensors), SPECS, MAX_ROWS)
    except InvalidInput as error:
        assert len(str(error)) < 500  # noqa: PT017
    else:
        assert [len(buffer) for buffer in rows.tensors] == [rows.count * spec.row_bytes for spec in SPECS]
        assert 1 <= rows.count <= MAX_ROWS
