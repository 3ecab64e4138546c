"""On the completion queue short batches run on the thread that serves, between calls."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import torch

from tests.rpc.served import serve
from tests.serving.fakes import FakeCompiled


async def test_bursts_of_calls_are_all_answered_by_the_thread_that_serves(models: Path) -> None:
    ran: set[str] = set()

    def double(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ran.add(threading.current_thread().name)
        return (x * 2,)

    compiled = FakeCompiled(forward=double)
    for graph in compiled.graphs.values():
        graph.anywhere = True
    async with serve(models, lambda *_: compiled) as served:
        assert await served.infer(1.5) == [3.0]
        ran.clear()  # of loading
        for burst in range(20):  # each of many more rows than a batch, and nothing comes after it
            values = [float(burst * 100 + i) for i in range(45)]
            answers = await asyncio.gather(*(served.infer(value, -value) for value in values))
            assert answers == [[2 * value, -2 * value] for value in values]
        assert "opara-grpc" in ran
        assert served.sample("opara_requests_total", model="double", code="OK") == 1 + 20 * 45
