"""How a server process starts, stops, and fails to start."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opara_protos.v1 import inference_pb2 as pb
from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub
from tests.e2e.server_process import PATIENCE_S, ROOT, command, environment, run, running
from tests.ports import reserved_port
from tests.serving.fakes import wait_for

SERVING, NOT_SERVING = 1, 2
ROWS = 32
CALLS = 16


def request(value: float, rows: int = ROWS) -> pb.InferRequest:
    data = np.full((rows, 4), value, np.float32).tobytes()
    tensor = pb.Tensor(name="x", data_type=pb.DATA_TYPE_FLOAT32, shape=(rows, 4), data=data)
    return pb.InferRequest(model="small", inputs=[tensor])


def limits(models: Path, batch_size: int, **batching: int) -> None:
    """Others than SMALL_TOML's. ``batch_size``: the largest."""
    toml, lines = models / "small" / "model.toml", "\n".join(f"{key} = {value}" for key, value in batching.items())
    text = toml.read_text().replace("[1, 4]", f"[1, {batch_size}]").replace("max_queue_rows = 4096", lines)
    toml.write_text(text)


def answered(response: pb.InferResponse) -> float:
    values = np.frombuffer(response.outputs[0].data, np.float32)
    assert values.shape == (4 * ROWS,)
    assert (values == values[0]).all()
    return float(values[0])


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGTERM, 2), (signal.SIGINT, 1)]
)
def test_a_signal_drains_what_is_in_flight_and_ends_with_0(small: Path, number: signal.Signals, workers: int) -> None:
    """All of it waits in the queue as the signal comes, and still does after the drain delay. One call per connection:
    gRPC closes one with its last answer, and what it wrote before may be lost where the client writes meanwhile."""
    limits(small, 8192, max_rows=ROWS, max_queue_rows=4096, max_queue_delay_us=3_000_000)
    with (
        running(small, "--drain-delay=0.5", "--grace=100", f"--workers={workers}") as server,
        ExitStack() as stack,
    ):
        own = (("grpc.use_local_subchannel_pool", 1),)
        channels = [stack.enter_context(grpc.insecure_channel(server.grpc, own)) for _ in range(CALLS)]
        calls = [
            InferenceServiceStub(channel).Infer.future(request(float(value)), timeout=PATIENCE_S)
            for value, channel in enumerate(channels)
        ]
        server.wait_for('opara_received_total{model="small"}', CALLS)
        server.process.send_signal(number)
        assert [answered(call.result()) for call in calls] == [value + 1.0 for value in range(CALLS)]
        assert server.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_port_that_opens_late_is_served_from_its_first_connection_on(small: Path, workers: int) -> None:
    codes: list[grpc.StatusCode] = []

    def knock(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_reconnect_backoff_ms", 50)]) as channel:
            call = InferenceServiceStub(channel).Infer.future(request(1.0), timeout=PATIENCE_S, wait_for_ready=True)
            codes.append(call.code())

    with reserved_port() as port:
        knocking = threading.Thread(target=knock, args=(port,))
        knocking.start()
        with running(small, f"--port={port}", f"--workers={workers}", "--listen-when-ready"):
            knocking.join()
    assert codes == [grpc.StatusCode.OK]


def test_a_full_queue_refuses_at_once_and_answers_what_it_took(small: Path) -> None:
    """What waits does so until the queue is full to the last row, however long that takes: a batch is that large."""
    limits(small, 4 * ROWS, max_rows=2 * ROWS, max_queue_rows=4 * ROWS, max_queue_delay_us=3_600_000_000)
    with running(small) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = InferenceServiceStub(channel)

        def ask(value: float, rows: int = ROWS) -> Any:
            """Without a deadline, for which it would not wait."""
            return stub.Infer.future(request(value, rows))

        for refused in (16, 32):
            waiting = [ask(float(value)) for value in range(3)]
            server.wait_for('opara_queue_depth_rows{model="small"}', 3 * ROWS)
            calls = [ask(0.0, 2 * ROWS) for _ in range(16)]
            assert {call.code() for call in calls} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert server.sample('opara_rejected_total{model="small",reason="queue_full"}') == refused
            assert not any(call.done() for call in waiting)
            waiting.append(ask(3.0))
            assert [answered(call.result()) for call in waiting] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("workers", [0, 1])
def test_watchers_and_idle_streams_do_not_hold_the_end_up(small: Path, workers: int) -> None:
    with (
        running(small, "--grace=1000", f"--workers={workers}") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watching).status == SERVING
        enough = threading.Event()

        def requests() -> Iterator[pb.InferStreamRequest]:
            yield pb.InferStreamRequest(request=request(1.0))
            enough.wait(2 * PATIENCE_S)  # the client keeps its stream open

        stream: Any = InferenceServiceStub(channel).InferStream(requests())
        assert answered(next(stream).response) == 2.0
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0  # much less than the grace
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            next(stream)
        enough.set()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_second_signal_ends_the_process_unless_it_is_the_first_come_twice(small: Path, workers: int) -> None:
    """Until then it drains: calls that come late are answered."""
    with (
        running(small, "--drain-delay=1000", f"--workers={workers}") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert next(watching).status == SERVING
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):  # it hears of both together
            server.process.send_signal(number)
        assert next(watching).status == NOT_SERVING
        stub = InferenceServiceStub(channel)
        late = [stub.Infer.future(request(float(value)), timeout=PATIENCE_S) for value in range(10)]
        assert [answered(call.result()) for call in late] == [value + 1.0 for value in range(10)]
        for _ in range(round(PATIENCE_S / 0.1)):
            server.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                assert server.process.wait(0.1) == 128 + signal.SIGTERM
                assert "ending at once on another SIGTERM" in (small.parent / "server.log").read_text()
                return
        pytest.fail("it goes on")


def test_a_signal_before_the_engine_has_loaded_anything_ends_all(small: Path) -> None:
    """The grace is longer than anybody waits here: the end comes of the signal."""
    importing = small.parent / "importing"
    endless = f"import pathlib, time\npathlib.Path({str(importing)!r}).touch()\nwhile True: time.sleep(1)"
    (small.parent / "torch.py").write_text(endless)
    options = ("--port=0", "--metrics-port=0", "--workers=2", "--grace=100000", f"--app-dir={small.parent}")
    with subprocess.Popen(command("serve", f"--models={small}", *options), env=environment()) as process:
        wait_for(importing.exists)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def test_on_a_terminal_a_bar_shows_the_loading_and_the_ready_line_stays_alone(small: Path) -> None:
    master, slave = os.openpty()
    shown: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the terminal's other end is closed
            while part := os.read(master, 1024):
                shown.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with running(small, stderr=slave) as server:
        assert server.stop() == 0
    os.close(slave)
    reader.join(PATIENCE_S)
    os.close(master)
    assert b"small: " in b"".join(shown)
    assert b"READY grpc=" not in b"".join(shown)


def test_imports_are_not_searched_for_garbage(small: Path) -> None:
    toml = small / "small" / "model.toml"
    toml.write_text(toml.read_text().replace(":Small", ":after_imports"))
    with running(small) as server:
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("toml", "says", "workers"),
    [
        ('source = "python:torch.nn:Identity"\nbach_sizes = [1]', "unknown key 'bach_sizes'", 0),
        ("source = ", "model.toml: ", 0),
        ("source = ", "model.toml: ", 2),
    ],
)
def test_a_bad_model_is_one_readable_line(tmp_path: Path, toml: str, says: str, workers: int) -> None:
    (tmp_path / "models" / "bad").mkdir(parents=True)
    (tmp_path / "models" / "bad" / "model.toml").write_text(toml)
    options = ("--strict", "--port=0", "--metrics-port=0", f"--workers={workers}")
    ended = run("serve", "--models=models", *options, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("opara-server: ")]
    assert says in line
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_a_port_in_use_is_one_readable_line(small: Path, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ("--metrics-port=0", f"--workers={workers}")
        ended = run("serve", f"--models={small}", f"--port={port}", *options, cwd=small)
    assert (ended.returncode, ended.stdout) == (1, "")
    said = f"opara-server: cannot listen on 127.0.0.1:{port} (--host, --port): Address already in use"
    assert ended.stderr.splitlines()[-1] == said


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("host", "shown"), [("nowhere.invalid", "nowhere.invalid"), ("203.0.113.7", "203.0.113.7"), ("[::2]", "[::2]")]
)
def test_a_host_that_cannot_be_had_is_one_readable_line(small: Path, host: str, shown: str, workers: int) -> None:
    ended = run(
        "serve",
        f"--models={small}",
        f"--host={host}",
        "--port=0",
        "--metrics-port=0",
        f"--workers={workers}",
        cwd=small,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"opara-server: cannot listen on {shown}:0 (--host, --port): ")
    assert not last.endswith(": ")
    assert not re.search(r"^[EWI]\d{4} ", ended.stderr, re.MULTILINE)  # a line of gRPC's own log


def test_a_bad_option_is_one_readable_line(small: Path) -> None:
    ended = run("serve", f"--models={small}", "--port=many", cwd=small)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("opara-server: --port: ")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_plan_prints_what_was_measured(small: Path, as_json: bool) -> None:
    options = ["--json"] if as_json else []
    ended = run("plan", str(small / "small"), f"--app-dir={ROOT}", *options, cwd=small)
    assert ended.returncode == 0, ended.stderr
    if as_json:
        assert '"operators": 2' in ended.stdout
    else:
        assert "batch size 4: 2 operators (aten), width 1, depth 2" in ended.stdout
        assert re.search(r"→ +sequential +1 +0 .* 1\.00×", ended.stdout)


def test_a_plan_that_was_made_ahead_is_what_serves(small: Path) -> None:
    kept = f"--cache-dir={small.parent / 'ahead'}"
    said = [run("plan", str(small / "small"), f"--app-dir={ROOT}", kept, cwd=small).stdout for _ in range(2)]
    assert ["measured before" in one for one in said] == [False, True]
    with running(small, kept) as server, grpc.insecure_channel(server.grpc) as channel:
        described = InferenceServiceStub(channel).GetModel(pb.GetModelRequest(model="small"), timeout=PATIENCE_S)
        assert [bucket.reused for bucket in described.buckets] == [True, True]


def test_without_its_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')")
    paths = f"{tmp_path}:{environment()['PYTHONPATH']}"
    ended = subprocess.run(
        [sys.executable, "-m", "opara_server.cli", "--version"],
        capture_output=True,
        text=True,
        env=environment() | {"PYTHONPATH": paths},
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == "opara-server needs: pip install 'opara-serve[server]'\n"
