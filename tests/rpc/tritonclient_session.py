"""What tritonclient does with a server: ``python -m tests.rpc.tritonclient_session TARGET``, a process of its own.

Its stubs are in the common descriptor pool, where tests must not leave them. The server has the model ``echo``, which
gives back one input of every element type and one of no bytes, and lets models be loaded and unloaded.
"""

from __future__ import annotations

import asyncio
import queue
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib import resources
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as sync_client
import tritonclient.grpc.aio as aio_client
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from opara_server.rpc.descriptors import message_class

NUMPY = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP32": np.float32,
    "FP64": np.float64,
}
IN_FLIGHT = 90  # fewer rows than the served model's queue takes
Tensors = list[tuple[str, Any, str]]  # name, array, datatype


def tensors(rows: int, seed: int) -> Tensors:
    random = np.random.default_rng(seed)
    made = [
        (datatype.lower(), random.integers(0, 2 if datatype == "BOOL" else 100, (rows, 3)).astype(kind), datatype)
        for datatype, kind in NUMPY.items()
    ]
    return [*made, ("nothing", np.zeros((rows, 0), np.float32), "FP32")]


def given(module: Any, sent: Tensors) -> list[Any]:
    return [module.InferInput(name, array.shape, kind).set_data_from_numpy(array) for name, array, kind in sent]


def check(result: Any, sent: Tensors) -> None:
    for name, array, kind in sent:
        got = result.as_numpy(name)
        assert result.get_output(name).datatype == kind
        assert got.shape == array.shape, (name, got.shape)
        assert np.array_equal(got.astype(array.dtype), array), name


def refused(call: Callable[[], object], *says: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert all(part in str(caught.value) for part in says), caught.value


def fields(message: DescriptorProto, prefix: str = "") -> dict[str, tuple[object, ...]]:
    """Everything of a message, and of those in it, that matters on the wire."""
    name = prefix + message.name
    found: dict[str, tuple[object, ...]] = {
        f"{name}.{f.name}": (f.number, f.type, f.label, f.type_name) for f in message.field
    }
    for nested in message.nested_type:
        found |= fields(nested, f"{name}.")
    return found


def known(file: FileDescriptorProto) -> dict[str, tuple[object, ...]]:
    enums: dict[str, tuple[object, ...]] = {
        f"{enum.name}.{value.name}": (value.number,) for enum in file.enum_type for value in enum.value
    }
    methods = {
        f"{service.name}.{m.name}": (m.input_type, m.output_type, m.client_streaming, m.server_streaming)
        for service in file.service
        for m in service.method
    }
    return enums | methods | {name: kind for message in file.message_type for name, kind in fields(message).items()}


def compare_protocols() -> None:
    """What we have of the protocol is what its clients have."""
    theirs: dict[str, tuple[object, ...]] = {}
    for module in (service_pb2, model_config_pb2):
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        theirs |= known(file)
    ours_too = message_class("ModelInferRequest")  # in one process with theirs
    assert ours_too.DESCRIPTOR is not service_pb2.ModelInferRequest.DESCRIPTOR
    committed = resources.files("opara_protos").joinpath("open_inference.binpb").read_bytes()
    (ours,) = FileDescriptorSet.FromString(committed).file
    assert len(known(ours)) > 150
    for name, kind in known(ours).items():
        assert theirs[name] == kind, name


def describe(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert client.is_model_ready("echo", "1")
    refused(partial(client.is_model_ready, "nobody"), "NOT_FOUND", "no model 'nobody'")
    assert client.get_server_metadata(as_json=True)["name"] == "opara-serve"
    metadata = client.get_model_metadata("echo")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        (name, kind, [-1, *array.shape[1:]]) for name, array, kind in tensors(1, 0)
    ]
    config = client.get_model_config("echo").config
    assert (config.max_batch_size, len(config.input), config.input[0].data_type) == (16, 11, 1)
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    index = client.get_model_repository_index(as_json=True)["models"]
    assert [(m["name"], m["state"]) for m in index] == [("echo", "READY")]


def infer(client: Any) -> None:
    for rows in (1, 16):
        sent = tensors(rows, rows)
        result = client.infer("echo", given(sync_client, sent), request_id="r", priority=1, timeout=60_000_000)
        check(result, sent)
        assert result.get_response().id == "r"
    sent = tensors(2, 5)
    wanted = [sync_client.InferRequestedOutput(name) for name in ("nothing", "bf16")]
    result = client.infer("echo", given(sync_client, sent), outputs=wanted, compression_algorithm="gzip")
    assert [output.name for output in result.get_response().outputs] == ["nothing", "bf16"]
    check(result, [sent[-1], sent[7]])


def infer_wrongly(client: Any) -> None:
    inputs = given(sync_client, tensors(1, 1))
    refused(partial(client.infer, "echo", inputs[1:]), "INVALID_ARGUMENT", "missing input: 'bool'")
    refused(partial(client.infer, "echo", inputs, sequence_id=7), "INVALID_ARGUMENT", "sequence_")
    text = sync_client.InferInput("fp64", [1, 3], "BYTES").set_data_from_numpy(
        np.array([[b"a", b"b", b"c"]], np.object_)
    )
    refused(partial(client.infer, "echo", [*inputs[:-2], text, inputs[-1]]), "expected FP64, got BYTES")
    shared = sync_client.InferInput("fp64", [1, 3], "FP64").set_shared_memory("region", 24)
    refused(partial(client.infer, "echo", [*inputs[:-2], shared, inputs[-1]]), "INVALID_ARGUMENT")
    output = sync_client.InferRequestedOutput("fp32")
    output.set_shared_memory("region", 12)
    refused(partial(client.infer, "echo", inputs, outputs=[output]), "INVALID_ARGUMENT", "shared_memory_byte_size")
    ranked = sync_client.InferRequestedOutput("fp32", class_count=2)
    refused(partial(client.infer, "echo", inputs, outputs=[ranked]), "INVALID_ARGUMENT", "classification")
    for absent in (client.get_system_shared_memory_status, client.get_trace_settings, client.get_log_settings):
        refused(absent, "UNIMPLEMENTED")


def infer_all_at_once(client: Any) -> None:
    answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()

    def told(number: int, result: Any, error: Any) -> None:
        answers.put((number, result, error))

    for number in range(IN_FLIGHT):
        client.async_infer("echo", given(sync_client, tensors(1, number)), partial(told, number))
    for _ in range(IN_FLIGHT):
        number, result, error = answers.get(timeout=60)
        assert error is None, error
        check(result, tensors(1, number))


def infer_on_a_stream(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(IN_FLIGHT):
        model = "nobody" if number % 10 == 0 else "echo"
        client.async_stream_infer(model, given(sync_client, tensors(1, number)), request_id=str(number))
    errors, seen = 0, set()
    for _ in range(IN_FLIGHT):
        result, error = answers.get(timeout=60)
        if error is not None:
            assert "NOT_FOUND: no model 'nobody'" in str(error), error
            errors += 1
            continue
        number = int(result.get_response().id)
        check(result, tensors(1, number))
        seen.add(number)
    client.stop_stream()
    assert (errors, len(seen)) == (IN_FLIGHT // 10, IN_FLIGHT - IN_FLIGHT // 10)


def manage(client: Any) -> None:
    stats = client.get_inference_statistics("echo").model_stats[0]
    assert stats.inference_stats.success.count >= 2 * IN_FLIGHT * 0.9
    assert stats.execution_count <= stats.inference_count
    client.unload_model("echo")
    assert not client.is_model_ready("echo")
    refused(partial(client.infer, "echo", given(sync_client, tensors(1, 1))), "UNAVAILABLE")
    client.load_model("echo")
    check(client.infer("echo", given(sync_client, tensors(1, 1))), tensors(1, 1))
    refused(partial(client.load_model, "nobody"), "NOT_FOUND")


async def in_asyncio(target: str) -> None:
    async with aio_client.InferenceServerClient(target) as client:
        assert await client.is_server_ready()
        assert (await client.get_model_metadata("echo")).platform == "pytorch"
        results = await asyncio.gather(
            *(client.infer("echo", given(aio_client, tensors(1, number))) for number in range(IN_FLIGHT))
        )
        for number, result in enumerate(results):
            check(result, tensors(1, number))

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for number in range(IN_FLIGHT):
                inputs = given(aio_client, tensors(1, number))
                yield {"model_name": "echo", "inputs": inputs, "request_id": str(number)}

        seen = set()
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            number = int(result.get_response().id)
            check(result, tensors(1, number))
            seen.add(number)
        assert seen == {*range(IN_FLIGHT)}


def main(target: str) -> None:
    compare_protocols()
    with sync_client.InferenceServerClient(target) as client:
        for part in (describe, infer, infer_wrongly, infer_all_at_once, infer_on_a_stream, manage):
            part(client)
    asyncio.run(in_asyncio(target))
    print("all as it should be")


if __name__ == "__main__":
    main(sys.argv[1])
