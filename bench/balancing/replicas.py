"""opara-servers that can be stopped, killed and started again at the same address."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
MODEL, INPUT, WIDTH = "tiny", "x", 16
MODEL_TOML = """\
source = "python:{source}"
batch_sizes = {batch_sizes}
policy = "sequential"
device = "cpu"

[[inputs]]
name = "x"
dtype = "float32"
shape = [16]

[batching]
max_queue_delay_us = {delay_us}
"""
PATIENCE_S = 150.0
_ANSWERED = re.compile(r'opara_requests_total\{(?=[^}]*model="tiny")(?=[^}]*code="OK")[^}]*\} (\S+)')


class ReplicaError(Exception):
    """A server that did not get ready; str() says what it wrote last."""


@dataclass
class Replica:
    """One server. ``address``: of gRPC; ``metrics``: of its metrics; ``log``: what it writes."""

    address: str
    metrics: str
    models: Path
    log: Path
    options: Sequence[str] = ()
    _process: Process | None = field(default=None, init=False)

    async def start(self) -> None:
        """Returns once it is READY. Raises ReplicaError."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(), stdin=DEVNULL, stdout=PIPE, stderr=log, env=_environment()
            )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line.startswith(b"READY"):
            raise ReplicaError(f"{self.address} is not ready; it wrote last:\n{self.log.read_text()[-1000:]}")

    async def stop(self) -> None:
        """SIGTERM; returns once it has drained and ended."""
        process = self._running()
        process.terminate()
        status = await process.wait()
        if status:
            raise ReplicaError(f"{self.address} ended with {status}; it wrote last:\n{self.log.read_text()[-1000:]}")

    async def kill(self) -> None:
        """SIGKILL; returns once it is gone."""
        process = self._running()
        if process.returncode is None:
            process.kill()
        await process.wait()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It does nothing in the block, and its connections stay."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)

    async def answered(self) -> int:
        """Requests that this process has answered."""
        return sum(int(float(count)) for count in _ANSWERED.findall(await asyncio.to_thread(self.exposition)))

    def exposition(self) -> str:
        with urlopen(f"http://{self.metrics}/metrics", timeout=PATIENCE_S) as page:
            text: str = page.read().decode()
        return text

    def _running(self) -> Process:
        assert self._process is not None, "start comes first"
        return self._process

    def _command(self) -> list[str]:
        host, _, port = self.address.rpartition(":")
        metrics_host, _, metrics_port = self.metrics.rpartition(":")
        return [
            *(sys.executable, "-m", "opara_server.cli", "serve"),
            *(f"--models={self.models}", f"--app-dir={ROOT}", f"--cache-dir={self.models.parent / 'plans'}"),
            *(f"--host={host}", f"--port={port}"),
            *(f"--metrics-host={metrics_host}", f"--metrics-port={metrics_port}"),
            *self.options,
        ]


@asynccontextmanager
async def replicas(
    addresses: Sequence[str],
    metrics: Sequence[str],
    folder: Path,
    options: Sequence[str],
    *,
    delay_us: int = 0,
    source: str = "bench.balancing.models:slow_to_load",
    batch_sizes: Sequence[int] = (1, 8),
) -> AsyncIterator[list[Replica]]:
    """One server at each of ``addresses``, to be started; killed at the end. They serve MODEL, which ``source`` makes
    and which gives back its input. ``delay_us``: how long it waits for more requests before it runs a batch."""
    model = folder / "models" / MODEL
    model.mkdir(parents=True)
    text = MODEL_TOML.format(delay_us=delay_us, source=source, batch_sizes=list(batch_sizes))
    (model / "model.toml").write_text(text)
    made = [
        Replica(address, page, model.parent, folder / f"replica-{number}.log", options)
        for number, (address, page) in enumerate(zip(addresses, metrics, strict=True))
    ]
    async with AsyncExitStack() as stack:
        for replica in made:
            stack.push_async_callback(_end, replica)
        yield made


async def answered(servers: Sequence[Replica]) -> list[int]:
    """By each, as nearly at the same time as can be."""
    return await asyncio.gather(*(server.answered() for server in servers))


async def start_all(servers: Sequence[Replica]) -> None:
    """The first alone: the others find the plan that it has saved."""
    await servers[0].start()
    await asyncio.gather(*(server.start() for server in servers[1:]))


async def _end(replica: Replica) -> None:
    if replica._process is not None:
        await replica.kill()


def _environment() -> dict[str, str]:
    paths = [*(str(ROOT / part) for part in ("server", "protos")), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
