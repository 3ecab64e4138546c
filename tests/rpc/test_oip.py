"""The Open Inference Protocol over a real connection, on the port of our own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from opara_server.rpc.descriptors import OIP_SERVICE, message_class, oip_methods
from opara_server.rpc.front import STREAM_IN_FLIGHT
from opara_server.version import VERSION
from tests.rpc.served import MAX_ROWS, MODEL, MODEL_TOML, PATIENCE_S, HeldSleep, Served, eventually, serve, write_model


def oip(kind: str, **fields: Any) -> Any:
    return message_class(kind)(**fields)


async def ask(served: Served, method: str, **fields: Any) -> Any:
    call: Any = served.channel.unary_unary(
        f"/{OIP_SERVICE}/{method}", None, message_class(f"{method}Response").FromString
    )
    return await call(oip(f"{method}Request", **fields).SerializeToString(), timeout=PATIENCE_S)


async def refusal(served: Served, method: str, **fields: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(served, method, **fields)
    return caught.value.code(), caught.value.details() or ""


async def code_of_bytes(served: Served, method: str, message: bytes) -> grpc.StatusCode:
    call: Any = served.channel.unary_unary(f"/{OIP_SERVICE}/{method}", None, None)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(message, timeout=PATIENCE_S)
    return caught.value.code()


def infer_fields(*values: float, **fields: Any) -> dict[str, Any]:
    """One row of two equal numbers for each of ``values``."""
    data = np.repeat(np.asarray(values, dtype=np.float32), 2).tobytes()
    inputs = [{"name": "x", "datatype": "FP32", "shape": (len(values), 2)}]
    return {"model_name": MODEL, "inputs": inputs, "raw_input_contents": [data]} | fields


def doubled(response: Any) -> list[float]:
    (output,), (raw,) = response.outputs, response.raw_output_contents
    rows = np.frombuffer(raw, dtype=np.float32).reshape(tuple(output.shape))
    return [float(value) for value in rows[:, 0]]


class Stream:
    def __init__(self, served: Served) -> None:
        open_stream: Any = served.channel.stream_stream(
            f"/{OIP_SERVICE}/ModelStreamInfer", None, message_class("ModelStreamInferResponse").FromString
        )
        self.call: Any = open_stream(timeout=PATIENCE_S)

    async def send(self, *values: float, **fields: Any) -> None:
        message = oip("ModelInferRequest", **infer_fields(*values, **{"id": f"{values[0]:g}"} | fields))
        await self.call.write(message.SerializeToString())

    async def answer(self) -> Any:
        answer = await self.call.read()
        assert answer is not grpc.aio.EOF, await self.call.code()  # type: ignore[attr-defined]
        return answer

    async def rest(self) -> AsyncIterator[Any]:
        """All answers that are left, once nothing more is sent."""
        await self.call.done_writing()
        while (answer := await self.call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            yield answer


async def test_the_answer_has_rows_id_and_version(served: Served) -> None:
    for _ in range(2):  # the second time by its form
        response = await ask(served, "ModelInfer", **infer_fields(1.0, 2.0, id="abc"))
        assert (response.model_name, response.model_version, response.id) == (MODEL, "1", "abc")
        assert doubled(response) == [2.0, 4.0]
    assert served.sample("opara_requests_total", model=MODEL, code="OK") == 2


async def test_both_protocols_share_batches_and_metrics(served: Served) -> None:
    held = await served.hold()
    own = [asyncio.create_task(served.infer(float(value))) for value in range(4)]
    other = [asyncio.create_task(ask(served, "ModelInfer", **infer_fields(float(value)))) for value in range(4)]
    await eventually(lambda: served.waiting() == 8)
    served.device.gate.set()
    assert await asyncio.gather(*own) == [[2.0 * value] for value in range(4)]
    assert [doubled(answer) for answer in await asyncio.gather(*other)] == [[2.0 * value] for value in range(4)]
    await held
    assert served.device.replays[-2:] == [1, 8]
    assert served.sample("opara_requests_total", model=MODEL, code="OK") == 9


async def test_what_is_refused_has_its_status_and_is_counted(served: Served) -> None:
    code, text = await refusal(served, "ModelInfer", **infer_fields(*range(MAX_ROWS + 1)))
    assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "input 'x': expected 1 to 16 rows, got 17")
    code, _ = await refusal(served, "ModelInfer", **infer_fields(1.0, model_name="nobody"))
    assert code is grpc.StatusCode.NOT_FOUND
    code, text = await refusal(served, "ModelInfer", **infer_fields(1.0, model_version="7"))
    assert (code, text) == (grpc.StatusCode.NOT_FOUND, "model 'double' has no version '7', only '1'")
    served.device.error = RuntimeError("secret in /etc/passwd")
    code, text = await refusal(served, "ModelInfer", **infer_fields(1.0))
    assert code is grpc.StatusCode.INTERNAL
    assert re.fullmatch(r"internal error [0-9a-f]+", text)
    for model, status, count in ((MODEL, "INVALID_ARGUMENT", 1), ("(unknown)", "NOT_FOUND", 1), (MODEL, "INTERNAL", 1)):
        assert served.sample("opara_requests_total", model=model, code=status) == count


async def test_a_timeout_ends_the_wait_in_the_queue(served: Served) -> None:
    held = await served.hold()
    timeout = {"timeout": oip("InferParameter", int64_param=1)}
    late = asyncio.create_task(refusal(served, "ModelInfer", **infer_fields(7.0, parameters=timeout)))
    await eventually(lambda: served.waiting() == 1 or late.done())
    served.device.gate.set()
    code, _ = await late
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    await held
    assert served.sample("opara_rows_total", model=MODEL) == 1


async def test_a_higher_priority_goes_first(tmp_path: Path) -> None:
    toml = MODEL_TOML + "priority_levels = 2\n"
    async with serve(write_model(tmp_path / "models", toml=toml)) as served:
        held, done = await served.hold(), list[str]()

        async def infer(name: str, priority: int) -> None:
            parameters = {"priority": oip("InferParameter", uint64_param=priority)}
            await ask(served, "ModelInfer", **infer_fields(*range(8), parameters=parameters))
            done.append(name)

        low = asyncio.create_task(infer("low", 2))
        await eventually(lambda: served.waiting() == 8)
        high = asyncio.create_task(infer("high", 1))
        await eventually(lambda: served.waiting() == 16)
        served.device.gate.set()
        await asyncio.gather(held, low, high)
        assert done == ["high", "low"]


async def test_errors_in_a_stream_answer_their_requests_and_leave_it_open(served: Served) -> None:
    stream = Stream(served)
    await stream.send(1.0)
    await stream.send(2.0, model_name="nobody")
    await stream.call.write(b"\xff\xff")
    await stream.send(3.0, inputs=[])
    await stream.send(4.0)
    answers = {answer.infer_response.id: answer async for answer in stream.rest()}
    assert await stream.call.code() is grpc.StatusCode.OK
    assert {name: doubled(answers[name].infer_response) for name in "14"} == {"1": [2.0], "4": [8.0]}
    assert [answers[name].error_message for name in "14"] == ["", ""]
    assert answers["2"].error_message == "NOT_FOUND: no model 'nobody'"
    assert answers[""].error_message == "INVALID_ARGUMENT: the bytes are no inference.ModelInferRequest"
    assert answers["3"].error_message.startswith("INVALID_ARGUMENT: expected one entry of raw_input_contents")
    assert len(answers) == 5


async def test_a_stream_has_many_in_flight_and_answers_as_they_finish(served: Served) -> None:
    held = await served.hold()
    stream = Stream(served)
    for value in range(STREAM_IN_FLIGHT - 1):
        await stream.send(float(value))
    await eventually(lambda: served.waiting() == STREAM_IN_FLIGHT - 1)
    await stream.send(1000.0, model_name="nobody")
    assert (await stream.answer()).infer_response.id == "1000"
    served.device.gate.set()
    answers = {answer.infer_response.id: doubled(answer.infer_response) async for answer in stream.rest()}
    assert answers == {f"{value}": [2.0 * value] for value in range(STREAM_IN_FLIGHT - 1)}
    await held


async def test_stopping_answers_what_a_stream_has_sent(served: Served) -> None:
    held = await served.hold()
    stream = Stream(served)
    await stream.send(1.0)
    await eventually(lambda: served.waiting() == 1)
    stopping = asyncio.create_task(served.app.stop())
    await asyncio.sleep(0)
    served.device.gate.set()
    assert doubled((await stream.answer()).infer_response) == [2.0]
    assert await stream.call.code() is grpc.StatusCode.UNAVAILABLE
    await held
    await stopping


async def test_the_server_and_its_models_are_described(served: Served) -> None:
    assert (await ask(served, "ServerLive")).live
    assert (await ask(served, "ServerReady")).ready
    assert (await ask(served, "ModelReady", name=MODEL, version="1")).ready
    server = await ask(served, "ServerMetadata")
    assert (server.name, server.version) == ("opara-serve", VERSION)
    assert list(server.extensions) == ["model_configuration", "schedule_policy", "statistics"]
    model = await ask(served, "ModelMetadata", name=MODEL)
    assert (model.name, list(model.versions), model.platform) == (MODEL, ["1"], "pytorch")
    tensors = [(t.name, t.datatype, list(t.shape)) for t in (*model.inputs, *model.outputs)]
    assert tensors == [("x", "FP32", [-1, 2]), ("y", "FP32", [-1, 2])]
    config = (await ask(served, "ModelConfig", name=MODEL)).config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == (MODEL, MAX_ROWS, [2])
    assert config.input[0].data_type == config.output[0].data_type == 11  # TYPE_FP32
    batching = config.dynamic_batching
    assert (list(batching.preferred_batch_size), batching.priority_levels) == ([1, 4, 8], 1)
    index = await ask(served, "RepositoryIndex", ready=True)
    assert [(m.name, m.version, m.state) for m in index.models] == [(MODEL, "1", "READY")]


async def test_statistics_add_up(served: Served) -> None:
    held = await served.hold()
    asked = [asyncio.create_task(ask(served, "ModelInfer", **infer_fields(1.0))) for _ in range(5)]
    await eventually(lambda: served.waiting() == 5)
    served.device.gate.set()
    await asyncio.gather(held, *asked)
    await refusal(served, "ModelInfer", **infer_fields(1.0, inputs=[]))
    for fields in ({"name": MODEL, "version": "1"}, {}):
        (stats,) = (await ask(served, "ModelStatistics", **fields)).model_stats
        assert (stats.name, stats.inference_count, stats.execution_count) == (MODEL, 6, 2)
        parts = stats.inference_stats
        assert (parts.success.count, parts.fail.count, parts.queue.count) == (6, 1, 6)
        assert parts.compute_input.count == parts.compute_infer.count == parts.compute_output.count == 2
        assert 0 < parts.compute_infer.ns < parts.success.ns
        assert {b.batch_size: b.compute_infer.count for b in stats.batch_stats} == {1: 1, 4: 0, 8: 1}


async def test_unknown_models_and_versions_are_not_found(served: Served) -> None:
    for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
        for fields in ({"name": "nobody"}, {"name": MODEL, "version": "2"}):
            code, _ = await refusal(served, method, **fields)
            assert code is grpc.StatusCode.NOT_FOUND, method


async def test_a_model_that_failed_is_unavailable(tmp_path: Path) -> None:
    models = write_model(tmp_path / "models")
    write_model(models, "broken", 'source = "python:nowhere:at_all"')
    async with serve(models) as served:
        assert not (await ask(served, "ModelReady", name="broken")).ready
        for method in ("ModelMetadata", "ModelConfig"):
            code, text = await refusal(served, method, name="broken")
            assert code is grpc.StatusCode.UNAVAILABLE
            assert str(tmp_path) not in text
        index = {m.name: m for m in (await ask(served, "RepositoryIndex")).models}
        assert (index["broken"].state, index[MODEL].state) == ("UNAVAILABLE", "READY")
        assert index["broken"].reason == "its name or its model.toml cannot be used: the server's log says why"
        assert [m.name for m in (await ask(served, "RepositoryIndex", ready=True)).models] == [MODEL]


async def test_bytes_that_are_no_message_are_invalid(served: Served) -> None:
    off = {"RepositoryModelLoad", "RepositoryModelUnload"}
    for method in {*oip_methods()} - off - {"ModelStreamInfer"}:
        assert await code_of_bytes(served, method, b"\xff\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT, method


async def test_what_is_not_there_is_unimplemented(served: Served) -> None:
    for method in ("SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "TraceSetting", "LogSettings"):
        assert await code_of_bytes(served, method, b"") is grpc.StatusCode.UNIMPLEMENTED, method


async def test_draining_the_server_lives_but_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opara_server.app.asyncio", draining := HeldSleep())
    async with serve(write_model(tmp_path / "models"), drain_delay_s=3.0) as served:
        assert (await ask(served, "ServerReady")).ready
        stopping = asyncio.create_task(served.app.stop())
        await asyncio.sleep(0)
        assert not (await ask(served, "ServerReady")).ready
        assert (await ask(served, "ServerLive")).live
        assert doubled(await ask(served, "ModelInfer", **infer_fields(1.0))) == [2.0]
        draining.end.set()
        await stopping


async def test_models_are_changed_only_where_that_is_allowed(served: Served) -> None:
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        code, text = await refusal(served, method, model_name=MODEL)
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "--admin" in text
    assert doubled(await ask(served, "ModelInfer", **infer_fields(1.0))) == [2.0]


async def test_models_are_loaded_and_unloaded_while_others_serve(tmp_path: Path) -> None:
    models = write_model(tmp_path / "models")
    async with serve(models, admin=True) as served:
        assert "model_repository" in (await ask(served, "ServerMetadata")).extensions
        write_model(models, "later")
        code, _ = await refusal(served, "ModelInfer", **infer_fields(1.0, model_name="later"))
        assert code is grpc.StatusCode.NOT_FOUND
        await ask(served, "RepositoryModelLoad", model_name="later")
        assert doubled(await ask(served, "ModelInfer", **infer_fields(1.0, model_name="later"))) == [2.0]
        assert await served.health("later") == 1
        no = oip("ModelRepositoryParameter", bool_param=False)
        await ask(served, "RepositoryModelUnload", model_name="later", parameters={"unload_dependents": no})
        code, text = await refusal(served, "ModelInfer", **infer_fields(1.0, model_name="later"))
        assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "model 'later' is not ready: UNLOADED")
        assert (await served.health("later"), await served.health()) == (2, 1)
        assert (await ask(served, "ServerReady")).ready
        assert doubled(await ask(served, "ModelInfer", **infer_fields(1.0))) == [2.0]


async def test_what_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    models = write_model(tmp_path / "models")
    async with serve(models, admin=True) as served:
        write_model(models, "broken", "batch_sizes = 1")
        code, text = await refusal(served, "RepositoryModelLoad", model_name="broken")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert text == "model 'broken' could not be loaded: the server's log says why"
        for name in ("nobody", "", "../double"):
            code, _ = await refusal(served, "RepositoryModelLoad", model_name=name)
            assert code is grpc.StatusCode.NOT_FOUND
            code, _ = await refusal(served, "RepositoryModelUnload", model_name=name)
            assert code is grpc.StatusCode.NOT_FOUND
        parameters = {"config": oip("ModelRepositoryParameter", string_param="{}")}
        code, text = await refusal(served, "RepositoryModelLoad", model_name=MODEL, parameters=parameters)
        assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "parameter 'config' is not supported")
        code, text = await refusal(served, "RepositoryIndex", repository_name="other")
        assert (code, text) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "no repository 'other': there is one, which has no name",
        )
