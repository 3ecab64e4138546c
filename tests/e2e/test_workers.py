"""Several processes that take calls, and what becomes of requests when one of all these processes dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opara_protos.v1 import inference_pb2 as pb
from opara_protos.v1.inference_pb2_grpc import InferenceServiceStub
from opara_server.workers.records import SUBMISSION
from tests.browser import needs_browser, open_browser
from tests.e2e.conftest import SMALL_TOML, write_model
from tests.e2e.server_process import PATIENCE_S, ServerProcess, running

SERVING, NOT_SERVING = 1, 2
TOGETHER = 24
# Requests wait until there are so many rows, however long that takes.
PATIENT_TOML = SMALL_TOML.replace("[1, 4]", f"[{TOGETHER}]") + "max_queue_delay_us = 3_600_000_000\n"
GONE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def request(value: float, rows: int = 1, model: str = "small") -> pb.InferRequest:
    data = np.full((rows, 4), value, np.float32).tobytes()
    tensor = pb.Tensor(name="x", data_type=pb.DATA_TYPE_FLOAT32, shape=(rows, 4), data=data)
    return pb.InferRequest(model=model, inputs=[tensor])


def right(response: pb.InferResponse, value: float, rows: int = 1) -> bool:
    values = np.frombuffer(response.outputs[0].data, np.float32)
    return values.shape == (4 * rows,) and bool((values == value + 1).all())


def children(server: ServerProcess, role: str) -> list[int]:
    """Processes of the server's that do this."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == server.process.pid and f"\0{role}\0" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@contextmanager
def channels(server: ServerProcess, count: int) -> Iterator[list[grpc.Channel]]:
    """Connections of their own, which the kernel spreads over the workers."""
    with ExitStack() as stack:
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50))
        yield [stack.enter_context(grpc.insecure_channel(server.grpc, options)) for _ in range(count)]


class Load:
    """Callers that ask for one thing after the other, each with values of its own, until they are told to stop."""

    def __init__(self, connections: list[grpc.Channel]) -> None:
        self.codes: Counter[grpc.StatusCode] = Counter()
        self.wrong = 0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._call, args=(InferenceServiceStub(channel), number))
            for number, channel in enumerate(connections)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    @property
    def answered(self) -> int:
        return self.codes[grpc.StatusCode.OK]

    def _call(self, stub: InferenceServiceStub, number: int) -> None:
        value = number * 1e5
        while not self._over.is_set():
            value, rows, code, wrong = value + 1, 1 + number % 3, grpc.StatusCode.OK, False
            try:
                wrong = not right(
                    stub.Infer(request(value, rows), timeout=PATIENCE_S, wait_for_ready=True), value, rows
                )
            except grpc.RpcError as error:
                code = error.code()
            with self._lock:
                self.codes[code] += 1
                self.wrong += wrong


def counted(server: ServerProcess, model: str) -> tuple[int, Counter[str]]:
    """Requests that have come, and those answered, by code."""
    codes = {
        code.name: int(server.sample(f'opara_requests_total{{code="{code.name}",model="{model}"}}'))
        for code in grpc.StatusCode
    }
    return int(server.sample(f'opara_received_total{{model="{model}"}}')), Counter(
        {k: v for k, v in codes.items() if v}
    )


def settled(counts: tuple[int, Counter[str]]) -> bool:
    """Whether all that have come are answered."""
    received, codes = counts
    return received == codes.total()


@contextmanager
def still(pid: int) -> Iterator[None]:
    """The process does nothing in the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def health(channel: grpc.Channel) -> int:
    try:
        asked = health_pb2.HealthCheckRequest()
        return int(health_pb2_grpc.HealthStub(channel).Check(asked, timeout=PATIENCE_S, wait_for_ready=True).status)
    except grpc.RpcError:  # its worker was killed meanwhile
        return 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With two workers, for tests that leave it well."""
    models = tmp_path_factory.mktemp("workers") / "models"
    write_model(models, "small", SMALL_TOML)
    write_model(models, "patient", PATIENT_TOML)
    with running(models, "--workers=2", "--admin") as process:
        yield process
        assert process.stop() == 0


def test_both_take_calls_and_the_engine_counts_them_all(server: ServerProcess) -> None:
    before = server.sample('opara_requests_total{code="OK",model="small"}')
    with channels(server, 8) as connections, Load(connections) as load:
        eventually(lambda: load.answered >= 500)
    assert (load.wrong, set(load.codes)) == (0, {grpc.StatusCode.OK})
    assert server.sample('opara_requests_total{code="OK",model="small"}') - before == load.answered
    assert server.sample('opara_request_seconds_count{model="small"}') >= load.answered


def test_what_is_no_hot_path_is_answered_through_the_engine(server: ServerProcess) -> None:
    with channels(server, 1) as (channel,):
        stub = InferenceServiceStub(channel)
        listed = stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S)
        assert [(model.name, model.state) for model in listed.models] == [
            (name, pb.MODEL_STATE_READY) for name in ("patient", "small")
        ]
        with pytest.raises(grpc.RpcError, match="no model 'large'"):
            stub.GetModel(pb.GetModelRequest(model="large"), timeout=PATIENCE_S)


def test_neither_memory_nor_descriptors_grow(server: ServerProcess) -> None:
    def held() -> tuple[int, ...]:
        pids = [server.process.pid, *children(server, "engine"), *children(server, "worker")]
        return tuple(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)

    def shared() -> int:
        (engine,) = children(server, "engine")
        maps = Path(f"/proc/{engine}/smaps").read_text().split("opara-worker")[1:]
        return sum(int(part.split("Rss:")[1].split()[0]) for part in maps)

    def some(requests: int) -> tuple[tuple[int, ...], int]:
        with channels(server, 8) as connections, Load(connections) as load:
            eventually(lambda: load.answered >= requests)
        eventually(lambda: len(held()) == 4)
        return held(), shared()

    some(300)
    descriptors, kib = some(300)
    for _ in range(3):
        _, kib_after = some(500)
    eventually(
        lambda: all(now <= then + 2 for now, then in zip(held(), descriptors, strict=True))
    )  # sockets close late
    assert kib_after <= kib + 1024  # places of 2 KiB: one kept for each request would be more


def descriptors(pid: int) -> dict[Path, str]:
    """What a process has open."""
    found = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found[fd] = str(fd.readlink())
    return found


def shared(server: ServerProcess) -> tuple[int, int]:
    """Of how many workers the engine has the memory: mappings, and descriptors, of which Python keeps one for each."""
    (engine,) = children(server, "engine")
    held = sum("opara-worker" in file for file in descriptors(engine).values())
    return Path(f"/proc/{engine}/maps").read_text().count("opara-worker"), held


def test_requests_that_a_killed_worker_had_are_counted_as_their_clients_saw_them(server: ServerProcess) -> None:
    """All of them wait in the engine's queue, so it is known how many have come."""
    before, codes_before = counted(server, "patient")

    def ask(channel: grpc.Channel) -> Any:
        """Without a deadline, for which it would not wait."""
        return InferenceServiceStub(channel).Infer.future(request(1, model="patient"), wait_for_ready=True)

    with channels(server, 2 * TOGETHER) as connections:
        calls = [ask(channel) for channel in connections[: TOGETHER - 1]]
        server.wait_for('opara_queue_depth_rows{model="patient"}', TOGETHER - 1)
        os.kill(children(server, "worker")[0], signal.SIGKILL)
        eventually(lambda: counted(server, "patient")[1] != codes_before)
        lost = (counted(server, "patient")[1] - codes_before)["UNAVAILABLE"]
        eventually(lambda: sum(call.done() for call in calls) == lost)
        server.wait_for('opara_queue_depth_rows{model="patient"}', TOGETHER - 1 - lost)
        calls += [ask(channel) for channel in connections[TOGETHER : TOGETHER + 1 + lost]]
        failed = [call.exception(PATIENCE_S) for call in calls]
        assert {call.code() for call, error in zip(calls, failed, strict=True) if error} <= GONE
    assert (failed.count(None), len(failed) - failed.count(None)) == (TOGETHER, lost)
    now, codes = counted(server, "patient")
    assert now - before == len(calls)
    assert codes - codes_before == {"OK": TOGETHER, "UNAVAILABLE": lost}
    eventually(lambda: len(children(server, "worker")) == 2 and shared(server) == (2, 2))


def test_a_killed_worker_takes_only_its_own_requests_along(server: ServerProcess) -> None:
    before, codes_before = counted(server, "small")
    with channels(server, 12) as connections, Load(connections) as load:
        eventually(lambda: load.answered >= 300)
        victim, other = children(server, "worker")
        os.kill(victim, signal.SIGKILL)
        answered = load.answered
        eventually(lambda: load.answered >= answered + 300)
        eventually(lambda: len({*children(server, "worker")} - {victim}) == 2)
        assert other in children(server, "worker")
        eventually(lambda: health(connections[0]) == SERVING)
    assert load.wrong == 0
    assert load.codes.keys() - {grpc.StatusCode.OK} <= GONE
    gone = sum(load.codes[code] for code in GONE)
    assert gone <= 2 * len(connections)  # each had one in flight, and may have sent another one before it was told
    eventually(lambda: settled(counted(server, "small")))  # once the engine has seen the worker's end
    now, codes = counted(server, "small")
    received, new = now - before, codes - codes_before
    assert received == new.total()
    assert load.answered <= new["OK"]  # some answers did not arrive
    assert load.answered <= received <= load.answered + gone  # some requests did not, either


def test_a_worker_that_sends_nonsense_is_replaced_and_only_it(server: ServerProcess) -> None:
    victim, other = children(server, "worker")
    (engine,) = children(server, "engine")
    replaced = server.sample('opara_workers_replaced_total{cause="broken"}')
    with channels(server, 12) as connections, Load(connections) as load:
        eventually(lambda: load.answered >= 100)
        with submissions(server, victim, engine).open("wb", buffering=0) as pipe:
            pipe.write(SUBMISSION.pack(0, 12345, 1, inf, 0, 0))  # there is no such model
        eventually(lambda: victim not in children(server, "worker"))
        eventually(lambda: len(children(server, "worker")) == 2)
        answered = load.answered
        eventually(lambda: load.answered >= answered + 100)
    assert load.wrong == 0
    assert load.codes.keys() - {grpc.StatusCode.OK} <= GONE
    assert other in children(server, "worker")
    assert children(server, "engine") == [engine]
    server.wait_for('opara_workers_replaced_total{cause="broken"}', replaced + 1)
    eventually(lambda: shared(server) == (2, 2))


def submissions(server: ServerProcess, worker: int, engine: int) -> Path:
    """Where this worker writes what the engine is to run."""

    def pipes(pid: int) -> dict[str, Path]:
        return {file: fd for fd, file in descriptors(pid).items() if file.startswith("pipe:")}

    def written(fd: Path) -> bool:
        flags = Path(f"/proc/{worker}/fdinfo/{fd.name}").read_text().split("flags:")[1].split()[0]
        return int(flags, 8) & os.O_ACCMODE == os.O_WRONLY

    def found() -> list[Path]:
        between = pipes(worker).keys() & pipes(engine).keys() - pipes(server.process.pid).keys()
        return [fd for pipe, fd in pipes(worker).items() if pipe in between and written(fd)]

    eventually(found)  # a worker that has just been started may not have it yet
    (only,) = found()
    return only


def test_a_killed_engine_is_replaced_and_meanwhile_nothing_hangs(server: ServerProcess) -> None:
    with channels(server, 6) as connections, Load(connections) as load:
        eventually(lambda: load.answered >= 100)
        watching = health_pb2_grpc.HealthStub(connections[0]).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert next(watching).status == SERVING
        (engine,) = children(server, "engine")
        workers = children(server, "worker")
        with still(server.process.pid):  # so that there is no other engine yet
            os.kill(engine, signal.SIGKILL)
            assert next(watching).status == NOT_SERVING
            refused = load.codes[grpc.StatusCode.UNAVAILABLE]
            eventually(lambda: load.codes[grpc.StatusCode.UNAVAILABLE] > refused + 2 * len(connections))
        assert next(watching).status == SERVING
        answered = load.answered
        eventually(lambda: load.answered >= answered + 100)
        assert children(server, "worker") == workers
        assert children(server, "engine") != [engine]
    assert load.wrong == 0
    assert set(load.codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert settled(counted(server, "small"))  # in the new engine's time
    assert server.sample('opara_rejected_total{model="small",reason="unavailable"}') > 0


@needs_browser
def test_the_status_page_shows_what_all_workers_do_and_goes_on_with_the_next_engine(server: ServerProcess) -> None:
    rate = "Number(document.querySelector('#models tbody tr:nth-child(2)').cells[2].innerText)"
    answered = "readings.at(-1)?.[1].get('small')?.answered"  # as the page has read them
    with open_browser() as browser, channels(server, 6) as connections:
        with Load(connections) as load:
            browser.open(f"http://{server.metrics}/#small%2F4")
            browser.wait_for("document.body.innerText.includes('2 of 2 models ready')")
            browser.wait_for(f"{rate} > 0")
            browser.wait_for("document.querySelector('details[open] figure > svg rect.k0')")
            browser.wait_for(f"{answered} > 0")
        assert browser.log() == []
        (engine,) = children(server, "engine")
        os.kill(engine, signal.SIGKILL)
        browser.wait_for(f"{answered} === 0")  # the next one's count, as long as nobody calls
        with Load(connections) as again:
            browser.wait_for(f"{rate} > 0 && document.body.innerText.includes('2 of 2 models ready')")
    assert (load.wrong, again.wrong) == (0, 0)


def test_children_end_with_the_process_that_started_them(small: Path) -> None:
    with running(small, "--workers=1") as server:
        pids = [*children(server, "engine"), *children(server, "worker")]
        assert len(pids) == 2
        server.process.kill()
        eventually(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and _runs(pid) for pid in pids))


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
