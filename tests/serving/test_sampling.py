"""Traces of models that serve: between batches, on the executor's thread, asked for or every so often."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from opara_server.serving.errors import InvalidInput, ModelNotFound, ModelUnavailable, Unsupported
from opara_server.serving.registry import ModelState
from opara_server.serving.sampling import sample_regularly
from tests.serving.fakes import PATIENCE_S, Answer, rows_of, wait_for
from tests.serving.registries import MODEL, Compiler, Server, repository, serving


def submit(server: Server, rows: int) -> Answer:
    answer = Answer()
    server.registry.get("a").batcher.submit(rows_of(rows), None, answer)
    return answer


def test_no_batch_is_in_the_air_and_those_that_wait_run_between_two_traces(tmp_path: Path) -> None:
    compiler = Compiler()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        device = compiler.made["a"].device
        device.gate.clear()
        held = submit(server, 1)
        wait_for(lambda: device.entered.acquire(blocking=False))
        wait_for(lambda: device.log[-1] == "replay")
        traces = [server.registry.profile("a", size) for size in (1, 4)]
        waiting = submit(server, 2)
        del device.log[:]
        device.gate.set()
        samples = [trace.result(PATIENCE_S) for trace in traces]
        held.array()
        waiting.array()
        assert {**server.registry.samples("a")} == {1: samples[0], 4: samples[1]}
    assert [sample.batch_size for sample in samples] == [1, 4]
    assert [event for event in device.log if event != "stamp"][:3] == ["trace 1", "replay", "trace 4"]


def test_what_is_not_there_is_not_traced(tmp_path: Path) -> None:
    compiler = Compiler()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        with pytest.raises(ModelNotFound):
            server.registry.profile("b", 1).result(PATIENCE_S)
        with pytest.raises(InvalidInput, match=r"has no batch size 3: \[1, 4\]"):
            server.registry.profile("a", 3).result(PATIENCE_S)
        compiler.made["a"].device.untraceable = True
        with pytest.raises(Unsupported):
            server.registry.profile("a", 1).result(PATIENCE_S)
        submit(server, 1).array()
        server.registry.unload("a").result(PATIENCE_S)
        with pytest.raises(ModelUnavailable):
            server.registry.profile("a", 1).result(PATIENCE_S)


def test_a_device_that_is_lost_while_it_is_traced_is_noticed(tmp_path: Path) -> None:
    compiler = Compiler()
    with serving(repository(tmp_path, a=MODEL), compiler) as server:
        server.load()
        device = compiler.made["a"].device
        device.untraceable = device.lost = True
        with pytest.raises(Unsupported):
            server.registry.profile("a", 1).result(PATIENCE_S)
        assert server.registry.describe("a").state is ModelState.FAILED
        assert server.registry.device_lost


async def test_every_batch_size_has_its_turn_and_one_that_fails_does_not_end_it(tmp_path: Path) -> None:
    compiler = Compiler()
    with serving(repository(tmp_path, a=MODEL, b=MODEL), compiler) as server:
        server.load()
        compiler.made["a"].device.untraceable = True
        device = compiler.made["b"].device
        del device.log[:]
        regularly = asyncio.create_task(sample_regularly(server.registry, 0.004))
        await asyncio.to_thread(wait_for, lambda: device.log.count("trace 4") == 2)
        regularly.cancel()
        assert device.log[:3] == ["trace 1", "trace 4", "trace 1"]


async def test_traces_are_spread_evenly_over_the_time_also_when_models_come_and_go(tmp_path: Path) -> None:
    slept: list[float] = []
    with serving(repository(tmp_path, a=MODEL, b=MODEL), Compiler()) as server:
        server.load()

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) in {4, 6}:
                gone = server.registry.unload("a" if len(slept) == 4 else "b")
                await asyncio.to_thread(gone.result, PATIENCE_S)
            if len(slept) == 8:
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await sample_regularly(server.registry, 60.0, sleep)
    assert slept == [15.0] * 4 + [30.0] * 2 + [60.0] * 2  # of four batch sizes, of two, of none
