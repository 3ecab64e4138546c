"""Requests read without protobuf are what protobuf reads, and answers written without it are what it writes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opara_protos.v1 import inference_pb2 as pb
from opara_server.engine.spec import ELEMENT_BYTES, TensorSpec
from opara_server.rpc import opara_codec, wire
from opara_server.rpc.errors import failure
from opara_server.rpc.forms import Rejected, Request
from opara_server.rpc.opara_codec import OparaCodec
from opara_server.rpc.scan import scan_infer, scan_streamed, varint
from opara_server.rpc.wire import DATA_TYPES
from opara_server.serving.errors import ModelNotFound
from opara_server.serving.registry import Registry

IMAGE = TensorSpec("image", "float32", (2, 3))
MASK = TensorSpec("mask", "bool", ())
SPECS = (IMAGE, MASK)


class Models:
    """A registry of one model, whose outputs are its inputs."""

    def __init__(self, *specs: TensorSpec) -> None:
        self.generation = 0
        self.model = SimpleNamespace(name="m", inputs=specs, outputs=specs, max_rows=4)

    def get(self, name: str) -> Any:
        if name != "m":
            raise ModelNotFound(f"no model {name!r}")
        return self.model


def codec(models: Models) -> OparaCodec:
    return OparaCodec(cast("Registry", models))


def tensor(spec: TensorSpec, data: bytes, rows: int = 2) -> pb.Tensor:
    return pb.Tensor(name=spec.name, data_type=DATA_TYPES[spec.dtype], shape=(rows, *spec.shape), data=data)


def good(**fields: Any) -> pb.InferRequest:
    inputs = [tensor(MASK, b"\0\1"), tensor(IMAGE, bytes(range(48)))]
    return pb.InferRequest(**({"model": "m", "id": "7", "inputs": inputs} | fields))


def read(reader: OparaCodec, message: bytes) -> Request:
    request = reader.read(message)
    assert isinstance(request, Request)
    return request


def counting(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry per message that protobuf has parsed since."""
    parsed: list[object] = []

    def counted(kind: Any, message: bytes) -> Any:
        parsed.append(kind)
        return wire.parse(kind, message)

    monkeypatch.setattr(opara_codec, "parse", counted)
    return parsed


def test_what_differs_in_id_and_data_alone_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, parsed = codec(Models(*SPECS)), counting(monkeypatch)
    first = read(reader, good().SerializeToString())
    again = good(id="another", inputs=[tensor(MASK, b"\1\1"), tensor(IMAGE, bytes(48))])
    second = read(reader, again.SerializeToString())
    assert len(parsed) == 1
    assert second.form is first.form
    assert (second.id, second.rows.count) == (b"another", 2)
    assert [bytes(t) for t in second.rows.tensors] == [bytes(48), b"\1\1"]
    read(reader, good(outputs=["mask"]).SerializeToString())
    assert len(parsed) == 2


def test_a_model_that_changes_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    models = Models(*SPECS)
    reader, message = codec(models), good().SerializeToString()
    read(reader, message)
    models.model = SimpleNamespace(name="m", inputs=(MASK, IMAGE), outputs=SPECS, max_rows=4)
    models.generation += 1
    assert [bytes(t) for t in read(reader, message).rows.tensors] == [b"\0\1", bytes(range(48))]


def test_values_are_checked_each_time() -> None:
    reader = codec(Models(*SPECS))
    bad = good(inputs=[tensor(IMAGE, bytes(48)), tensor(MASK, b"\1\2")]).SerializeToString()
    fine = good(inputs=[tensor(IMAGE, bytes(48)), tensor(MASK, b"\1\0")]).SerializeToString()
    for message in (bad, fine, bad):
        request = reader.read(message)
        if message is fine:
            assert isinstance(request, Request)
        else:
            assert isinstance(request, Rejected)
            assert str(request.error) == "input 'mask': a bool is a byte of 0 or 1"
            assert (request.model, request.id) == ("m", b"7")


def test_many_kinds_of_requests_are_forgotten_not_hoarded() -> None:
    reader, message = codec(Models(*SPECS)), good().SerializeToString()
    for number in range(3000):
        overruled = pb.InferRequest(model=str(number)).SerializeToString()  # of two models the last counts
        read(reader, overruled + message)
    assert 0 < len(reader._forms._forms) <= 1024
    before = len(reader._forms._forms)
    read(reader, pb.InferRequest(model="x" * 10_000).SerializeToString() + message)
    assert len(reader._forms._forms) == before


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
    sent = [tensor(spec, one, count) for spec, one in zip(specs, raw, strict=True)]
    reader = codec(Models(*specs))
    request_id = data.draw(st.text(max_size=200))
    message = pb.InferRequest(
        model="m", id=request_id, inputs=data.draw(st.permutations(sent)), outputs=["yy", "x"]
    ).SerializeToString()
    expected = pb.InferResponse(model="m", id=request_id, outputs=[sent[1], sent[0]])
    for _ in range(2):  # the second time by its form
        request = read(reader, message)
        assert reader.write(request, request.rows.tensors) == expected.SerializeToString()
        answer = pb.InferStreamResponse(id=request_id, response=expected)
        assert reader.write_streamed(request, request.rows.tensors) == answer.SerializeToString()


IDS = st.sampled_from(["", "7", "é", "x" * 300])
TENSORS = st.builds(
    pb.Tensor,
    name=st.sampled_from(["image", "mask", "", "y" * 200]),
    data_type=st.integers(0, 300),
    shape=st.lists(st.integers(-2, 2**40), max_size=4),
    data=st.binary(max_size=300),
)
REQUESTS = st.builds(
    pb.InferRequest,
    model=st.sampled_from(["m", "", "n" * 200]),
    id=IDS,
    inputs=st.lists(TENSORS, max_size=3),
    outputs=st.lists(st.sampled_from(["", "mask", "z" * 150]), max_size=2),
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


def parsed(message: bytes) -> pb.InferRequest | None:
    try:
        return pb.InferRequest.FromString(message)
    except Exception:  # noqa: BLE001 - whatever protobuf says of bytes that are no message
        return None


@given(spoiled(), st.binary(max_size=3), st.binary(max_size=3))
def test_what_is_scanned_is_what_protobuf_finds(message: bytes, before: bytes, after: bytes) -> None:
    cut = scan_infer(before + message + after, len(before), len(before) + len(message))
    known = parsed(message)
    if cut is None or known is None:
        return
    whole = before + message + after
    assert cut.id == known.id.encode()
    assert [whole[start:end] for start, end in cut.data] == [t.data for t in known.inputs]


@given(spoiled(), spoiled())
def test_equal_keys_mean_equal_requests(one: bytes, other: bytes) -> None:
    """But for ids and data."""
    stripped = []
    cuts = [scan_infer(message, 0, len(message)) for message in (one, other)]
    for message in (one, other):
        known = parsed(message)
        if known is None:
            return
        known.id = ""
        for sent in known.inputs:
            sent.data = bytes(len(sent.data))
        stripped.append(known)
    if None not in cuts and cuts[0].key == cuts[1].key:  # type: ignore[union-attr]
        assert stripped[0] == stripped[1]


@given(REQUESTS)
def test_what_clients_send_is_scanned(request: pb.InferRequest) -> None:
    message = request.SerializeToString()
    plain = request.id.isascii() and all(t.data_type < 128 for t in request.inputs)
    assert (scan_infer(message, 0, len(message)) is not None) == plain


@given(REQUESTS, st.integers(-1, 2**27))
def test_streamed_requests_are_scanned(request: pb.InferRequest, timeout_us: int) -> None:
    message = pb.InferStreamRequest(request=request, timeout_us=timeout_us).SerializeToString()
    found = scan_streamed(message)
    if timeout_us < 0:
        assert found is None
    else:
        assert found is not None
        (start, end), timeout = found
        assert (message[start:end], timeout) == (request.SerializeToString(), timeout_us)


def test_what_goes_wrong_in_a_stream_carries_the_id() -> None:
    reader = codec(Models(*SPECS))
    good_one = good().SerializeToString()
    for message, code, request_id in (
        (pb.InferStreamRequest(request=good(model="nobody")).SerializeToString(), 5, "7"),
        (pb.InferStreamRequest(request=good(), timeout_us=-1).SerializeToString(), 3, "7"),
        (b"\xff\xff", 3, ""),
        (b"\x0a" + varint(len(good_one) + 1) + good_one, 3, ""),
    ):
        request, _ = reader.read_streamed(message)
        assert isinstance(request, Rejected)
        answer = pb.InferStreamResponse.FromString(reader.fail_streamed(request.id, failure(request.error)))
        assert (answer.error.code, answer.id) == (code, request_id)
