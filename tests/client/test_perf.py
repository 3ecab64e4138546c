"""``opara-client perf`` from its arguments to what it prints and its exit code."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import grpc
import numpy as np
import pytest

from opara_client.cli import main
from opara_client.errors import OparaError
from opara_client.perf_load import Closed, Load, Payload
from opara_client.perf_opara import OparaProtocol
from opara_client.perf_processes import run_load
from opara_client.tensors import Array
from opara_protos.v1 import inference_pb2 as pb
from tests.client.fake_server import FakeServer
from tests.client.oip_server import INFER, oip_server
from tests.client.raw_server import Method, RawServer, parse

Output = pytest.CaptureFixture[str]
Perf = Callable[..., tuple[int | str | None, str, str]]
TRIES = 10
SHORT = ("--warm-up", "0.03", "--duration", "0.4", "--timeout", "60")


@pytest.fixture
def perf(capsys: Output) -> Perf:
    """Runs the command: exit code, what it printed, and its errors. Once more where this machine was held up for so
    long that nothing was sent in the time."""

    def once(target: str, *args: str) -> tuple[int | str | None, str, str]:
        code: int | str | None
        try:
            code = main(["perf", "--target", target, *SHORT, *args])
        except SystemExit as error:
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def run(target: str, *args: str) -> tuple[int | str | None, str, str]:
        for _ in range(TRIES):
            code, out, err = once(target, *args)
            if not re.search(r'^ *\d+(?: callers|/s) +0 |"sent": 0,', out, re.MULTILINE):
                break
        return code, out, err

    return run


def test_closed_loops_as_a_table(server: FakeServer, perf: Perf) -> None:
    code, out, err = perf(server.target, "double", "--concurrency", "1,4", "--check")
    assert (code, err) == (0, "")
    head, one, four, *notes = out.splitlines()
    assert " ".join(head.split()) == "load sent OK failed wrong OK/s p50 p75 p90 p95 p99 p99.9 max generator"
    for line, name in ((one, "1 caller"), (four, "4 callers")):
        assert line.strip().startswith(name)
        sent, ok, failed, wrong = map(int, line.split()[2:6])
        assert sent == ok > 0
        assert failed == wrong == 0
        times = list(map(float, line.split()[7:14]))
        assert times == sorted(times)
    assert any(line.startswith("closed loop: latency is service time") for line in notes)


def test_an_open_loop_of_several_processes_as_json(server: FakeServer, perf: Perf, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.float32).reshape(6, 2))
    given = ("--input", f"x=@{tmp_path}/x.npy", "--rows", "2")
    pace = ("--rate", "50,100", "--burst", "5", "--spacing", "constant", "--processes", "3", "--connections", "1")
    code, out, err = perf(server.target, "double", *given, *pace, "--check", "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert {key: result[key] for key in ("protocol", "model", "rows")} == {
        "protocol": "opara",
        "model": "double",
        "rows": 2,
    }
    slow, fast = result["runs"]
    assert (slow["rate"], fast["rate"]) == (50, 100)
    # Of bursts every 0.1 s and every 0.05 s, those between 0.03 s and 0.43 s.
    assert [run["answered"] + run["unsent"] for run in (slow, fast)] == [20, 40]
    assert (fast["burst"], fast["spacing"], fast["processes"], fast["payloads"]) == (5, "constant", 3, 3)
    assert sum(count for _, count in fast["histogram"]) == fast["answered"] > 0
    assert fast["latency_us"]["percentiles"]["p99.9"] == fast["latency_us"]["max"]
    assert fast["latency_us"]["mean"] > 0
    assert fast["generator"]["cpu_us_per_request"] > 0
    assert "counts from when a request was due" in fast["latency_counts_from"]
    assert f"p99.9 of {fast['answered']} answers is their maximum: measure longer" in fast["warnings"]


@pytest.mark.parametrize("model", ["double", "typed"])
def test_a_server_of_the_open_inference_protocol(perf: Perf, model: str) -> None:
    with oip_server() as server:
        code, out, err = perf(server.target, model, "--protocol", "oip", "--rate", "100", "--check", "--json")
    assert (code, err) == (0, "")
    (run,) = json.loads(out)["runs"]
    assert run["answered"] == run["sent"] > 0
    assert len({bytes(parse(request)[7][0]) for request in server.calls[INFER]}) == 8


INFER_METHOD, GET_MODEL = "/opara.v1.InferenceService/Infer", "/opara.v1.InferenceService/GetModel"


def opara_server(infer: Method) -> RawServer:
    """A model ``m`` that takes and gives x FLOAT32[-1, 2]."""

    def describe(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        x = pb.TensorSpec(name="x", data_type=pb.DATA_TYPE_FLOAT32, shape=[-1, 2])
        status = pb.ModelStatus(name="m", state=pb.MODEL_STATE_READY)
        return pb.GetModelResponse(status=status, inputs=[x], outputs=[x]).SerializeToString()

    return RawServer({INFER_METHOD: infer, GET_MODEL: describe})


def reply(array: Array) -> bytes:
    """An answer: a request reads the same, both have model, id and tensors as fields 1, 2 and 3."""
    return OparaProtocol().encode("m", {"x": array}, {})


def test_failures_are_told_of_by_status(perf: Perf) -> None:
    numbers = count(1)

    def method(request: bytes, context: grpc.ServicerContext) -> bytes:
        if next(numbers) % 2 == 0:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return request

    with opara_server(method) as server:
        code, out, _ = perf(server.target, "m", "--payloads", "1", "--rate", "100")
        assert code == 0
        sent, ok, failed, wrong = map(int, out.splitlines()[1].split()[1:5])
        assert failed == pytest.approx(sent / 2, abs=3)  # they may overtake those of the warm-up
        assert (ok, wrong) == (sent - failed, 0)
        assert f"100/s: failed: {failed} RESOURCE_EXHAUSTED\n" in out
        refused = perf(server.target, "m", "--payloads", "2")
    # Every second request is refused: one is told of before any load.
    assert refused == (1, "", "opara-client: RESOURCE_EXHAUSTED: full\n")


def test_wrong_answers_end_with_1(perf: Perf) -> None:
    def method(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return reply(np.full((1, 2), len(server.calls[INFER_METHOD]), np.float32))

    with opara_server(method) as server:
        assert perf(server.target, "m")[0] == 0
        code, out, _ = perf(server.target, "m", "--check")
    assert code == 1
    assert re.search(
        r"1 caller: wrong: \d+ answers of other values \(if they differ by rounding, give --tolerance\)\n", out
    )


def test_no_answer_at_all_ends_with_1(perf: Perf) -> None:
    def method(request: bytes, context: grpc.ServicerContext) -> bytes:
        if len(server.calls[INFER_METHOD]) > 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return request

    with opara_server(method) as server:
        assert perf(server.target, "m", "--payloads", "1", "--rate", "50")[0] == 1


def test_an_output_of_another_shape_than_declared_is_told_of_before_any_load(perf: Perf) -> None:
    with opara_server(lambda _request, _context: reply(np.zeros((1, 3), np.float32))) as server:
        told = perf(server.target, "m")
        assert len(server.calls[INFER_METHOD]) == 1
    assert told == (1, "", "opara-client: INTERNAL: output 'x': expected shape [1, 2], got [1, 3]\n")


def test_the_plot(server: FakeServer, perf: Perf, tmp_path: Path) -> None:
    target = tmp_path / "latency.svg"
    assert perf(server.target, "double", "--rate", "100", "--plot", str(target))[0] == 0
    assert target.read_text().rstrip().endswith("</svg>")


def test_without_matplotlib_nothing_is_measured(
    server: FakeServer, perf: Perf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "opara_client.perf_plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = perf(server.target, "double", "--plot", "latency.svg")
    assert (code, out) == (2, "")
    assert err == "opara-client: --plot needs matplotlib: pip install 'opara-serve[perf]'\n"
    assert not server.seen.calls


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--concurrency", "0"], "expected a whole number above 0, got 0"),
        (["--concurrency", "1,x"], "invalid list of numbers value: '1,x'"),
        (["--concurrency", "1", "--rate", "1"], "not allowed with"),
        (["--concurrency", "1,2", "--processes", "2"], "--processes 2: more than --concurrency 1"),
        (["--rate", "0"], "expected a number above 0, got 0"),
        (["--rate", "inf"], "expected a number above 0, got inf"),
        (["--duration", "x"], "invalid number value: 'x'"),
        (["--protocol", "rest"], "invalid choice: 'rest'"),
        (["--shape", "y=1"], "the model has no input 'y'; it has x"),
        (["--input", "x=@nowhere.npy"], "nowhere.npy: No such file or directory"),
    ],
)
def test_wrong_usage(server: FakeServer, perf: Perf, args: list[str], message: str) -> None:
    code, out, err = perf(server.target, "double", *args)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nobody", "opara-client: NOT_FOUND: no model 'nobody'\n"),
        ("loading", "opara-client: UNAVAILABLE: model 'loading' is LOADING: the server's log says more\n"),
    ],
)
def test_a_model_that_cannot_be_asked(server: FakeServer, perf: Perf, model: str, message: str) -> None:
    assert perf(server.target, model) == (1, "", message)


def test_another_protocol_than_the_servers(server: FakeServer, perf: Perf) -> None:
    code, _, err = perf(server.target, "double", "--protocol", "oip")
    assert code == 1
    assert err.startswith("opara-client: UNIMPLEMENTED: ")


class DyingProtocol(OparaProtocol):
    """Ends the process that decodes a first answer."""

    def decode(self, answer: bytes) -> dict[str, Array]:  # noqa: ARG002 (the protocol's)
        os._exit(3)


class TellingProtocol(OparaProtocol):
    """Tells of the environment of the process that decodes a first answer."""

    def decode(self, answer: bytes) -> dict[str, Array]:  # noqa: ARG002 (the protocol's)
        raise OparaError(f"{os.environ['MALLOC_TRIM_THRESHOLD_']} {os.environ['MALLOC_TOP_PAD_']}")


@pytest.mark.parametrize(
    ("target", "protocol", "message"),
    [
        ("127.0.0.1:1", DyingProtocol(), "a process of the load generator ended before its work was done"),
        ("127.0.0.1:1", OparaProtocol(), "UNAVAILABLE: 127.0.0.1:1: no connection within 0.2 s"),
    ],
)
def test_what_goes_wrong_in_a_process_is_raised_here(target: str, protocol: OparaProtocol, message: str) -> None:
    with pytest.raises(OparaError, match=message):
        run_load(unsent(target, protocol), 2)


def test_processes_keep_their_memory_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "12345")
    with pytest.raises(OparaError, match="UNKNOWN: 4294967296 12345"):
        run_load(unsent("127.0.0.1:1", TellingProtocol()), 1)
    assert "MALLOC_TRIM_THRESHOLD_" not in os.environ
    assert os.environ["MALLOC_TOP_PAD_"] == "12345"


def unsent(target: str, protocol: OparaProtocol) -> Load:
    payload = Payload(b"", reply(np.zeros((1, 2), np.float32)))
    return Load(target, protocol, (payload,), Closed(2), 1, 0.0, 1.0, 0.2, None)
