"""What is read by the layout of an earlier message is what is read without."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opara_server.rpc.forms import Forms, Rejected, Request
from opara_server.rpc.oip_codec import OipCodec
from opara_server.rpc.opara_codec import OparaCodec
from tests.rpc import test_oip_codec as oip
from tests.rpc import test_opara_codec as opara

Codec = OparaCodec | OipCodec


def opara_codec() -> OparaCodec:
    return opara.codec(opara.Models(*opara.SPECS))


KINDS = pytest.mark.parametrize(
    ("make", "good"),
    [(opara_codec, opara.good().SerializeToString()), (oip.codec, oip.good().SerializeToString())],
    ids=["opara.v1", "oip"],
)


def seasoned(codec: Codec, message: bytes) -> Codec:
    """It knows the message's form and layout."""
    for _ in range(3):
        assert isinstance(codec.read(message), Request)
    return codec


def seen(outcome: Request | Rejected) -> tuple[object, ...]:
    if isinstance(outcome, Rejected):
        return str(outcome.error), outcome.model, outcome.id
    form = outcome.form
    return (form.count, form.order, form.wanted, form.head, outcome.id, [bytes(t) for t in outcome.rows.tensors])


@KINDS
@given(data=st.data())
def test_messages_of_one_length_are_told_apart(make: Any, good: bytes, data: st.DataObject) -> None:
    other = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3), "bytes that differ")):
        at = data.draw(st.integers(0, len(good) - 1), "at")
        other[at] = data.draw(st.integers(0, 255), "byte")
    message = bytes(other)
    assert seen(seasoned(make(), good).read(message)) == seen(make().read(message))


@KINDS
def test_a_known_layout_needs_no_scanner(make: Any, good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = seasoned(make(), good)
    expected = seen(codec.read(good))
    monkeypatch.delattr(Forms, "read")
    assert seen(codec.read(good)) == expected


def test_layouts_are_forgotten_as_models_change() -> None:
    models = opara.Models(*opara.SPECS)
    codec = seasoned(opara.codec(models), opara.good().SerializeToString())
    models.model.max_rows = 1
    models.generation += 1
    assert isinstance(codec.read(opara.good().SerializeToString()), Rejected)
