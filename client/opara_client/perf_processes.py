"""A load sent by several processes at once: one sends what one core can."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from opara_client.errors import OparaError
from opara_client.perf_load import Load, Share, Tally, add
from opara_client.perf_sender import IdleSelector, Sender, precise_loop

READY = "ready"
# glibc reads these as a process starts. Otherwise it gives every large buffer back to the kernel, which faults it in
# again for the next request: a tenth to a quarter of the processor time of 600 KB requests.
KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
LEAD_NS = 50_000_000  # in which every process hears of the start


def run_load(load: Load, processes: int) -> Tally:
    """What came of ``load``, sent by ``processes`` processes that start together once all are connected.

    Raises OparaError where the server cannot be reached or a process ends of itself.
    """
    with _children(load, processes) as pipes:
        for pipe in pipes:
            _receive(pipe)
        start_ns = time.monotonic_ns() + LEAD_NS  # the monotonic clock is the same in all processes of a machine
        for pipe in pipes:
            pipe.send(start_ns)
        return add([tally for pipe in pipes if isinstance(tally := _receive(pipe), Tally)])


@contextmanager
def _children(load: Load, processes: int) -> Iterator[Sequence[Connection]]:
    """Spawned, as gRPC does not survive a fork."""
    context = multiprocessing.get_context("spawn")
    running: list[tuple[SpawnProcess, Connection]] = []
    try:
        with _environment(KEEP_MEMORY):
            for index in range(processes):
                ours, theirs = context.Pipe()
                process = context.Process(target=_child, args=(theirs, load, Share(index, processes)), daemon=True)
                process.start()
                theirs.close()  # so that its end is noticed here
                running.append((process, ours))
        yield [pipe for _, pipe in running]
    finally:
        for process, pipe in running:
            pipe.close()
            process.terminate()
            process.join()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """What children that are started meanwhile inherit; what the user has set stays."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _receive(pipe: Connection) -> str | Tally:
    try:
        message: str | Tally | OparaError = pipe.recv()
    except EOFError as error:
        raise OparaError("a process of the load generator ended before its work was done") from error
    if isinstance(message, OparaError):
        raise message
    return message


def _child(pipe: Connection, load: Load, share: Share) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends this process
    selector = IdleSelector()
    with asyncio.Runner(loop_factory=lambda: precise_loop(selector)) as runner:
        try:
            pipe.send(runner.run(_work(pipe, Sender(load, share, selector))))
        except OparaError as error:
            pipe.send(error)


async def _work(pipe: Connection, sender: Sender) -> Tally:
    async with sender:
        gc.collect()
        gc.freeze()  # what is there stays: no collection needs to walk through it
        pipe.send(READY)
        return await sender.run(await asyncio.to_thread(pipe.recv))
