"""Every element type travels there and back unchanged, whatever the array's layout; bfloat16 as its rule says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opara_client import Internal, OparaClient
from opara_client.tensors import decode, encode
from opara_protos.v1 import inference_pb2 as pb
from tests.client.fake_server import PATIENCE_S, FakeServer, default_models

Array = npt.NDArray[Any]
EXACT = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float64"]  # the fake server doubles float32


@pytest.fixture(scope="module")
def shared_client() -> Iterator[OparaClient]:
    with FakeServer(default_models()) as server, OparaClient(server.target, timeout=PATIENCE_S) as client:
        yield client


def arrays(dtypes: list[str]) -> st.SearchStrategy[Array]:
    """Any size, empty ones too, from one row without dimensions of its own; either byte order; any layout."""
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)
    orders = [
        order for name in dtypes for order in (np.dtype(name).newbyteorder("<"), np.dtype(name).newbyteorder(">"))
    ]
    plain = st.sampled_from(orders).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
    layouts = [lambda a: a, np.transpose, np.asfortranarray, lambda a: a[::-1], lambda a: a[::2]]
    return st.builds(lambda array, layout: layout(array), plain, st.sampled_from(layouts))


@given(array=arrays(EXACT))
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_through_a_server_nothing_changes(shared_client: OparaClient, array: Array) -> None:
    name = array.dtype.newbyteorder("=").name
    back = shared_client.infer(f"echo-{name}", {"x": array})["x"]
    assert back.dtype == np.dtype(name)
    np.testing.assert_array_equal(back, array)


@given(array=arrays(["float32"]))
@settings(max_examples=200, deadline=None)
def test_bfloat16_rounds_as_torch_does(array: Array) -> None:
    back = decode(encode("x", array, "bfloat16"))
    native = np.ascontiguousarray(array, np.float32)
    expected = torch.from_numpy(native.copy()).to(torch.bfloat16).to(torch.float32).numpy()
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, expected)
    assert np.array_equal(np.isnan(back), np.isnan(array))


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0 + 2**-8, 0x3F80),  # a tie goes to the even neighbour, here down
        (1.0 + 3 * 2**-8, 0x3F82),  # and here up
        (np.finfo(np.float32).max, 0x7F80),  # past the largest bfloat16
        (-0.0, 0x8000),
        (np.float32(1e-40), 0x0001),  # subnormal
    ],
)
def test_bfloat16_bits(value: float, bits: int) -> None:
    tensor = encode("x", np.array([value], np.float32), "bfloat16")
    assert tensor.data_type == pb.DATA_TYPE_BFLOAT16
    assert int.from_bytes(tensor.data, "little") == bits


def test_a_nan_with_any_payload_stays_one_in_bfloat16() -> None:
    payloads = np.array([0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32).view(np.float32)
    back = decode(encode("x", payloads, "bfloat16"))
    assert np.isnan(back).all()
    np.testing.assert_array_equal(np.signbit(back), [False, True, False])


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_outputs_are_read_only(name: str) -> None:
    back = decode(encode("x", np.ones((2, 2), np.float32), name))
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 0


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (pb.Tensor(name="y", data_type=pb.DATA_TYPE_INT32, shape=[2], data=b"123"), "3 bytes for int32"),
        (
            pb.Tensor(name="y", data_type=pb.DATA_TYPE_INT8, shape=[-1, -3], data=b"123"),
            "3 bytes for int8",
        ),
        (pb.Tensor(name="y", shape=[0]), r"unknown \(0\) dtype"),
    ],
)
def test_a_broken_answer_is_an_internal_error(tensor: pb.Tensor, message: str) -> None:
    with pytest.raises(Internal, match=message):
        decode(tensor)


def test_a_dtype_the_protocol_lacks_sends_no_bytes_of_the_process() -> None:
    tensor = encode("x", np.array([object()]))
    assert (tensor.data_type, list(tensor.shape), tensor.data) == (pb.DATA_TYPE_UNSPECIFIED, [1], b"")
