"""What the tests with real proxies take for granted: name server, configurations, the page of results."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest
from hpack import Decoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, SettingsFrame

from bench.balancing.load import Call, Failure, Load, Outcome
from bench.balancing.names import answer
from bench.balancing.proxies import CONFIGS, PROXIES, Proxy, configured, patient
from bench.rolling_restart import page
from bench.spread import told
from opara_protos.v1 import inference_pb2 as pb

QUERY = bytes.fromhex("abcd01000001000000000000") + b"\x07servers\x04test\x00"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def test_a_name_is_all_its_addresses_and_has_none_of_ipv6() -> None:
    a, aaaa = b"\x00\x01\x00\x01", b"\x00\x1c\x00\x01"
    found = answer(QUERY + a, ["127.0.0.2", "127.0.0.3"])
    assert found[:8] == bytes.fromhex("abcd818000010002")
    assert found[12 : len(QUERY) + 4] == (QUERY + a)[12:]
    records = found[len(QUERY) + 4 :]
    assert [socket.inet_ntoa(records[at + 12 : at + 16]) for at in (0, 16)] == ["127.0.0.2", "127.0.0.3"]
    assert answer(QUERY + aaaa, ["127.0.0.2"])[4:8] == b"\x00\x01\x00\x00"


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.name)
def test_a_proxy_runs_with_its_file_but_for_addresses(proxy: Proxy) -> None:
    text = configured(proxy, 1234, ["10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3"])
    original = (CONFIGS / proxy.config).read_text()
    different = [new for new, old in zip(text.splitlines(), original.splitlines(), strict=True) if new != old]
    assert len(different) == 4
    own = [line for line in different if "1234" in line]
    assert len(own) == 1
    servers = [line for line in different if line not in own]
    assert all(f"10.0.0.{number}" in line for number, line in enumerate(servers, 1))


@pytest.mark.parametrize("name", ["envoy.yaml", "haproxy.cfg", "haproxy-tcp.cfg"])
def test_proxies_that_ask_for_health_can_be_made_patient(name: str) -> None:
    text = (CONFIGS / name).read_text()
    different = sum(new != old for new, old in zip(patient(text).splitlines(), text.splitlines(), strict=True))
    assert different == (1 if name == "envoy.yaml" else 3)


@pytest.mark.parametrize("name", ["haproxy.cfg", "haproxy-tcp.cfg"])
def test_haproxy_asks_for_health_as_grpc_does(name: str) -> None:
    lines = [line.split() for line in (CONFIGS / name).read_text().splitlines() if "send-binary" in line]
    sent = b"".join(bytes.fromhex(line[2]) for line in lines)
    assert sent.startswith(PREFACE)
    frames, rest = [], memoryview(sent)[len(PREFACE) :]
    while rest:
        frame, length = Frame.parse_frame_header(rest[:9])
        frame.parse_body(rest[9 : 9 + length])
        frames.append(frame)
        rest = rest[9 + length :]
    settings, headers, data = frames
    assert isinstance(settings, SettingsFrame)
    assert isinstance(headers, HeadersFrame)
    assert {str(name): str(value) for name, value in Decoder().decode(headers.data)} == {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": "opara",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    assert isinstance(data, DataFrame)
    assert (data.data, "END_STREAM" in data.flags) == (bytes(5), True)


def test_failures_are_counted_by_what_they_were_told() -> None:
    failures = [
        Failure(0, "UNAVAILABLE", "gone"),
        Failure(1, "CANCELLED", ""),
        Failure(2, "UNAVAILABLE", "gone"),
    ]
    assert Outcome(3, failures=failures).codes() == {"UNAVAILABLE: gone": 2, "CANCELLED: ": 1}


def test_a_request_is_overtaken_by_what_was_sent_later_and_has_ended() -> None:
    outcome = Outcome(sent=10, open={1, 4, 9})
    assert [outcome.overtaken(by) for by in (1, 4, 5, 6, 7)] == [2, 2, 1, 1, 0]
    assert [outcome.over(5, end) for end in (9, 10, 11)] == [True, False, False]


async def test_no_more_requests_are_open_than_may_be() -> None:
    gate = asyncio.Event()

    async def echo(message: bytes, timeout: float) -> bytes:
        await gate.wait()
        return pb.InferResponse(outputs=pb.InferRequest.FromString(message).inputs).SerializeToString()

    load = Load([cast("Call", echo)], rate=1e6, at_most=3)
    running = asyncio.create_task(load.run())
    while load.outcome.sent < 3:
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert (load.outcome.sent, load.outcome.open) == (3, {0, 1, 2})
    load.stop()
    gate.set()
    await running
    assert (load.outcome.answered, load.outcome.wrong, load.outcome.open) == (load.outcome.sent, 0, set())


def test_a_share_is_compared_with_the_mean() -> None:
    assert told([90, 100, 110]) == {"answered": [90, 100, 110], "farthest": 0.1}
    assert told([200, 220, 120])["farthest"] == pytest.approx(1 / 3, abs=1e-4)


def test_the_page_says_what_failed_behind_what() -> None:
    def load(failed: int, **codes: int) -> dict[str, Any]:
        return {"sent": 100, "failed": failed, "codes": codes, "p50_ms": 1.0, "p99_ms": 2.0}

    phase = {"default": load(0), "off": load(3, UNAVAILABLE=3)}
    environment = {"date": "2026-01-01", "cores": 4, "cpu": "x", "opara": "1", "grpc": "1.85", "version": "1.40.0"}
    settings = {"options": "", "rate": 300.0, "cycles": 3}
    text = page({"envoy": {"environment": environment, "settings": settings, "restarts": phase, "kill": phase}})
    assert text.count("| envoy 1.40.0 | 100 | 0 | 100 | 3 | 3 UNAVAILABLE | 1.0 / 2.0 |") == 2
