"""The Open Inference Protocol's messages: read by their form as protobuf reads them, and what is refused, and how."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opara_server.engine.spec import ELEMENT_BYTES, TensorSpec
from opara_server.rpc import oip_codec, wire
from opara_server.rpc.descriptors import message_class
from opara_server.rpc.errors import failure
from opara_server.rpc.forms import Rejected, Request
from opara_server.rpc.oip_codec import OipCodec
from opara_server.rpc.oip_wire import DATATYPES
from opara_server.rpc.scan import scan_model_infer
from opara_server.serving.errors import InvalidInput, ModelNotFound
from opara_server.serving.registry import Registry

ModelInferRequest = message_class("ModelInferRequest")
InferInputTensor = message_class("ModelInferRequest.InferInputTensor")
ModelInferResponse = message_class("ModelInferResponse")
ModelStreamInferResponse = message_class("ModelStreamInferResponse")
InferParameter = message_class("InferParameter")

IMAGE = TensorSpec("image", "float32", (2, 3))
MASK = TensorSpec("mask", "bool", ())
SPECS = (IMAGE, MASK)
TYPED = {
    "bool": "bool_contents",
    "uint8": "uint_contents",
    "int8": "int_contents",
    "int16": "int_contents",
    "int32": "int_contents",
    "int64": "int64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
}


def codec(*specs: TensorSpec) -> OipCodec:
    """Of a registry with one model, whose outputs are its inputs."""
    model = SimpleNamespace(name="m", inputs=specs or SPECS, outputs=specs or SPECS, max_rows=4)

    def get(name: str) -> Any:
        if name != "m":
            raise ModelNotFound(f"no model {name!r}")
        return model

    return OipCodec(cast("Registry", SimpleNamespace(generation=0, get=get)))


def tensor(spec: TensorSpec, rows: int = 2, **fields: Any) -> Any:
    shape = (rows, *spec.shape)
    return InferInputTensor(**({"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape} | fields))


def good(**fields: Any) -> Any:
    wanted = {
        "model_name": "m",
        "id": "7",
        "inputs": [tensor(MASK), tensor(IMAGE)],
        "raw_input_contents": [b"\0\1", bytes(range(48))],
    }
    return ModelInferRequest(**(wanted | fields))


def read(reader: OipCodec, message: Any) -> Request:
    request = reader.read(message.SerializeToString())
    assert isinstance(request, Request), request
    return request


def refusal(message: Any, *specs: TensorSpec) -> str:
    request = codec(*specs).read(message.SerializeToString())
    assert isinstance(request, Rejected)
    assert isinstance(request.error, InvalidInput)
    assert (request.model, request.id) == (message.model_name, message.id.encode())
    return str(request.error)


def test_what_differs_in_id_and_data_alone_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []

    def counted(kind: Any, message: bytes) -> Any:
        parsed.append(kind)
        return wire.parse(kind, message)

    monkeypatch.setattr(oip_codec, "parse", counted)
    reader = codec()
    first = read(reader, good())
    second = read(reader, good(id="another", raw_input_contents=[b"\1\1", bytes(48)]))
    assert len(parsed) == 1
    assert second.form is first.form
    assert (second.id, second.rows.count) == (b"another", 2)
    assert [bytes(t) for t in second.rows.tensors] == [bytes(48), b"\1\1"]
    read(reader, good(parameters={"priority": InferParameter(uint64_param=2)}))
    assert len(parsed) == 2


def test_priority_and_timeout_belong_to_the_form() -> None:
    reader = codec()
    parameters = {"priority": InferParameter(uint64_param=2), "timeout": InferParameter(int64_param=5000)}
    for _ in range(2):
        form = read(reader, good(parameters=parameters)).form
        assert (form.priority, form.timeout_us) == (2, 5000)
        form = read(reader, good()).form
        assert (form.priority, form.timeout_us) == (0, 0)


def test_values_are_checked_each_time() -> None:
    reader = codec()
    for raw, fine in ((b"\1\2", False), (b"\1\1", True), (b"\1\2", False), (b"\0\1", True)):
        request = reader.read(good(raw_input_contents=[raw, bytes(48)]).SerializeToString())
        assert isinstance(request, Request) == fine


@pytest.mark.parametrize("dtype", ELEMENT_BYTES)
@given(data=st.data())
def test_every_element_type_travels_both_ways(dtype: str, data: st.DataObject) -> None:
    specs = tuple(
        TensorSpec(name, dtype, tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))) for name in ("x", "yy")
    )
    count = data.draw(st.integers(1, 4))
    raw = [data.draw(st.binary(min_size=count * s.row_bytes, max_size=count * s.row_bytes)) for s in specs]
    if dtype == "bool":
        raw = [bytes(byte & 1 for byte in one) for one in raw]
    request_id = data.draw(st.text(max_size=200))
    order = data.draw(st.permutations([0, 1]))
    message = ModelInferRequest(
        model_name="m",
        model_version=data.draw(st.sampled_from(["", "1"])),
        id=request_id,
        inputs=[tensor(specs[index], count) for index in order],
        outputs=[{"name": "yy"}, {"name": "x"}],
        raw_input_contents=[raw[index] for index in order],
    )
    expected = ModelInferResponse(
        model_name="m",
        model_version="1",
        id=request_id,
        outputs=[
            {"name": spec.name, "datatype": DATATYPES[dtype], "shape": (count, *spec.shape)} for spec in specs[::-1]
        ],
        raw_output_contents=raw[::-1],  # one each, also of no bytes
    )
    reader = codec(*specs)
    for _ in range(2):  # the second time by its form
        request = read(reader, message)
        assert reader.write(request, request.rows.tensors) == expected.SerializeToString()
        streamed = ModelStreamInferResponse(infer_response=expected)
        assert reader.write_streamed(request, request.rows.tensors) == streamed.SerializeToString()


@pytest.mark.parametrize("dtype", TYPED)
@given(data=st.data())
def test_typed_contents_are_what_raw_ones_are(dtype: str, data: st.DataObject) -> None:
    spec = TensorSpec("x", dtype, (3,))
    count = data.draw(st.integers(1, 4))
    raw = data.draw(st.binary(min_size=count * spec.row_bytes, max_size=count * spec.row_bytes))
    values = np.frombuffer(bytes(byte & 1 for byte in raw) if dtype == "bool" else raw, dtype)
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
    sent = tensor(spec, count, contents={TYPED[dtype]: values.tolist()})
    reader = codec(spec)
    for _ in range(2):
        request = read(reader, ModelInferRequest(model_name="m", inputs=[sent]))
        assert [bytes(t) for t in request.rows.tensors] == [values.tobytes()]
    assert not reader._forms._forms  # their values would be part of the key


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_types_without_contents_come_raw(dtype: str) -> None:
    spec = TensorSpec("x", dtype, (1,))
    message = ModelInferRequest(model_name="m", inputs=[tensor(spec, 1, contents={"fp32_contents": [1.0]})])
    word = DATATYPES[dtype]
    expected = f"input 'x': {word} values come only in raw_input_contents, not in fp32_contents"
    assert refusal(message, spec) == expected


def param(**value: Any) -> dict[str, Any]:
    return {"timeout": InferParameter(**value)}


SHARED = {"shared_memory_region": InferParameter(string_param="r")}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"raw_input_contents": [bytes(48)]},
            "expected one entry of raw_input_contents for each of 2 inputs, got 1",
        ),
        (
            {"raw_input_contents": [b"\0\1", bytes(48), b""]},
            "expected one entry of raw_input_contents for each of 2 inputs, got 3",
        ),
        (
            {"inputs": [tensor(MASK, contents={"bool_contents": [True, False]}), tensor(IMAGE)]},
            "input 'mask': contents beside raw_input_contents",
        ),
        (
            {"raw_input_contents": [], "inputs": [tensor(MASK, contents={"bool_contents": [True]}), tensor(IMAGE)]},
            "input 'mask': expected 2 bytes of data (2 x BOOL), got 1",
        ),
        (
            {"raw_input_contents": [], "inputs": [tensor(MASK, contents={"int_contents": [1, 0]})]},
            "input 'mask': BOOL values come in bool_contents or in raw_input_contents, not in int_contents",
        ),
        (
            {"raw_input_contents": [b"\0\1", bytes(47)]},
            "input 'image': expected 48 bytes of data (12 x FP32), got 47",
        ),
        ({"inputs": [tensor(MASK), tensor(IMAGE, datatype="BYTES")]}, "input 'image': expected FP32, got BYTES"),
        ({"inputs": [tensor(MASK), tensor(IMAGE, datatype="fp32")]}, "input 'image': expected FP32, got 'fp32'"),
        ({"inputs": [tensor(MASK), tensor(IMAGE, 5)]}, "input 'image': expected 1 to 4 rows, got 5"),
        (
            {"inputs": [tensor(MASK), tensor(IMAGE, shape=(2, 6))]},
            "input 'image': expected shape [rows, 2, 3], got [2, 6]",
        ),
        ({"outputs": [{"name": "y"}]}, "unknown output 'y': the model gives 'image', 'mask'"),
        (
            {"inputs": [tensor(MASK, parameters=SHARED), tensor(IMAGE)]},
            "input 'mask': parameter 'shared_memory_region' is not supported",
        ),
        (
            {"outputs": [{"name": "mask", "parameters": SHARED}]},
            "output 'mask': parameter 'shared_memory_region' is not supported",
        ),
        (
            {"outputs": [{"name": "mask", "parameters": {"classification": InferParameter(int64_param=3)}}]},
            "output 'mask': parameter 'classification' is not supported",
        ),
        ({"parameters": {"sequence_id": InferParameter(int64_param=3)}}, "parameter 'sequence_id' is not supported"),
        (
            {"parameters": {"triton_enable_empty_final_response": InferParameter(bool_param=True)}},
            "parameter 'triton_enable_empty_final_response' is not supported",
        ),
        ({"parameters": param(int64_param=-1)}, "parameter 'timeout': expected an integer of 0 or more"),
        ({"parameters": param(uint64_param=2**63)}, "parameter 'timeout': expected an integer of 0 or more"),
        ({"parameters": param(double_param=1.0)}, "parameter 'timeout': expected an integer of 0 or more"),
        ({"parameters": param()}, "parameter 'timeout': expected an integer of 0 or more"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], says: str) -> None:
    assert refusal(good(**fields)) == says


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("int8", 128), ("int8", -129), ("int16", 2**15), ("uint8", 256)],
)
def test_values_that_the_type_has_not_are_refused(dtype: str, value: int) -> None:
    spec = TensorSpec("x", dtype, ())
    message = ModelInferRequest(model_name="m", inputs=[tensor(spec, 1, contents={TYPED[dtype]: [value]})])
    assert refusal(message, spec) == f"input 'x': values outside of {DATATYPES[dtype]}"


def test_parameters_that_nothing_here_reads_are_ignored() -> None:
    parameters = {"temperature": InferParameter(double_param=0.5), "content_type": InferParameter(string_param="np")}
    plain = codec()
    for fields in ({"parameters": parameters}, {"inputs": [tensor(MASK, parameters=parameters), tensor(IMAGE)]}):
        assert read(plain, good(**fields)).rows.count == 2


@pytest.mark.parametrize("version", ["2", "01", " 1", "v" * 1000])
def test_an_unknown_version_is_not_found(version: str) -> None:
    request = codec().read(good(model_version=version).SerializeToString())
    assert isinstance(request, Rejected)
    assert isinstance(request.error, ModelNotFound)
    assert len(str(request.error)) < 200
    assert read(codec(), good(model_version="1")).form.model.name == "m"


def test_what_goes_wrong_in_a_stream_carries_the_id_and_the_status() -> None:
    for message, says, request_id in (
        (good(model_name="nobody").SerializeToString(), "NOT_FOUND: no model 'nobody'", "7"),
        (good(outputs=[{"name": "y"}]).SerializeToString(), "INVALID_ARGUMENT: unknown output 'y': ", "7"),
        (b"\xff\xff", "INVALID_ARGUMENT: the bytes are no inference.ModelInferRequest", ""),
    ):
        reader = codec()
        request = reader.read(message)
        assert isinstance(request, Rejected)
        answer = ModelStreamInferResponse.FromString(reader.fail_streamed(request.id, failure(request.error)))
        assert answer.error_message.startswith(says)
        assert answer.infer_response == ModelInferResponse(id=request_id)


PARAMETERS = st.dictionaries(
    st.sampled_from(["priority", "timeout", "a", "sequence_id"]),
    st.builds(InferParameter, int64_param=st.integers(-5, 5))
    | st.builds(InferParameter, uint64_param=st.integers(0, 2**64 - 1))
    | st.just(InferParameter()),
    max_size=2,
)
TENSORS = st.builds(
    InferInputTensor,
    name=st.sampled_from(["image", "mask", "", "y" * 200]),
    datatype=st.sampled_from(["FP32", "BOOL", "BYTES", ""]),
    shape=st.lists(st.integers(-2, 2**40), max_size=4),
    parameters=PARAMETERS,
    contents=st.none() | st.fixed_dictionaries({"fp32_contents": st.lists(st.floats(width=32), max_size=3)}),
)
REQUESTS = st.builds(
    ModelInferRequest,
    model_name=st.sampled_from(["m", "", "n" * 200]),
    model_version=st.sampled_from(["", "1", "2"]),
    id=st.sampled_from(["", "7", "é", "x" * 300]),
    parameters=PARAMETERS,
    inputs=st.lists(TENSORS, max_size=3),
    outputs=st.lists(st.sampled_from([{"name": ""}, {"name": "mask"}]), max_size=2),
    raw_input_contents=st.lists(st.binary(max_size=300), max_size=3),
)
MESSAGES = st.one_of(
    REQUESTS.map(lambda request: request.SerializeToString()),
    st.lists(REQUESTS.map(lambda request: request.SerializeToString()), max_size=3).map(b"".join),
    st.binary(max_size=64),
)


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """Messages with bytes changed, left out or put in."""
    message = bytearray(draw(MESSAGES))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(message)))
        message[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(message)


def parsed(message: bytes) -> Any:
    try:
        return ModelInferRequest.FromString(message)
    except Exception:  # noqa: BLE001 - whatever protobuf says of bytes that are no message
        return None


@given(spoiled())
def test_what_is_scanned_is_what_protobuf_finds(message: bytes) -> None:
    cut = scan_model_infer(message)
    known = parsed(message)
    if cut is None or known is None:
        return
    assert cut.id == known.id.encode()
    assert [message[start:end] for start, end in cut.data] == list(known.raw_input_contents)


def test_ids_that_no_client_sends_are_left_to_protobuf() -> None:
    assert scan_model_infer(b"\x1a\x01a") is not None
    for odd in (b"\x1a\x01a\x1a\x01b", b"\x1a\x00", b"\x1a\x01\xff"):
        assert scan_model_infer(odd) is None


def stripped(message: bytes) -> Any:
    """Without id and data."""
    known = parsed(message)
    if known is not None:
        known.id = ""
        known.raw_input_contents[:] = [bytes(len(raw)) for raw in known.raw_input_contents]
    return known


@given(spoiled(), spoiled())
def test_equal_keys_mean_equal_requests(one: bytes, other: bytes) -> None:
    cuts, requests = [scan_model_infer(one), scan_model_infer(other)], [stripped(one), stripped(other)]
    if None not in cuts and None not in requests and cuts[0].key == cuts[1].key:  # type: ignore[union-attr]
        assert requests[0].SerializeToString(deterministic=True) == requests[1].SerializeToString(deterministic=True)


@given(REQUESTS, st.sampled_from(["", "1", "other"]), st.data())
def test_a_request_with_another_id_and_other_data_has_the_same_key(
    request: Any, name: str, data: st.DataObject
) -> None:
    cut = scan_model_infer(request.SerializeToString())
    assert (cut is None) == (not request.id.isascii())
    if cut is None:
        return
    request.id = name
    request.raw_input_contents[:] = [
        data.draw(st.binary(min_size=len(raw), max_size=len(raw))) for raw in request.raw_input_contents
    ]
    again = scan_model_infer(request.SerializeToString())
    assert again is not None
    assert (again.key, again.id) == (cut.key, name.encode())


@given(spoiled())
def test_arbitrary_bytes_are_a_request_or_refused(message: bytes) -> None:
    request = codec().read(message)
    if isinstance(request, Rejected):
        assert len(str(request.error)) < 500
    else:
        assert [len(t) for t in request.rows.tensors] == [request.rows.count * spec.row_bytes for spec in SPECS]
