"""tritonclient with its own options for TLS and tokens, a process of its own:
``python -m tests.rpc.secured_tritonclient TARGET CA CERTIFICATE KEY TOKEN ADMIN_TOKEN``.

The server has the model ``double``; it is unloaded at the end.
"""

from __future__ import annotations

import asyncio
import queue
import sys

import numpy as np
import pytest
import tritonclient.grpc as sync_client
import tritonclient.grpc.aio as aio_client
from tritonclient.utils import InferenceServerException

X = np.array([[1, 2]], np.float32)


def main(target: str, ca: str, certificate: str, key: str, token: str, admin_token: str) -> None:
    tls = {"ssl": True, "root_certificates": ca, "private_key": key, "certificate_chain": certificate}
    headers = {"authorization": f"Bearer {token}"}
    with sync_client.InferenceServerClient(target, **tls) as client:
        inputs = [sync_client.InferInput("x", X.shape, "FP32").set_data_from_numpy(X)]
        assert client.is_server_ready()
        for compression in (None, "gzip", "deflate"):
            answer = client.infer("double", inputs, headers=headers, compression_algorithm=compression)
            assert np.array_equal(answer.as_numpy("y"), X * 2)
        streamed(client, inputs, headers)
        for wrong, status in (({}, "UNAUTHENTICATED"), ({"authorization": "Bearer nobody's"}, "UNAUTHENTICATED")):
            with pytest.raises(InferenceServerException) as caught:
                client.infer("double", inputs, headers=wrong)
            assert caught.value.status() == f"StatusCode.{status}"
        with pytest.raises(InferenceServerException) as caught:
            client.unload_model("double", headers=headers)
        assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
        asyncio.run(awaited(target, tls, headers))
        client.unload_model("double", headers={"authorization": f"Bearer {admin_token}"})


def streamed(
    client: sync_client.InferenceServerClient, inputs: list[sync_client.InferInput], headers: dict[str, str]
) -> None:
    answers: queue.SimpleQueue[tuple[sync_client.InferResult, InferenceServerException]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
    client.async_stream_infer("double", inputs)
    result, error = answers.get(timeout=60)
    client.stop_stream()
    assert error is None
    assert np.array_equal(result.as_numpy("y"), X * 2)


async def awaited(target: str, tls: dict[str, object], headers: dict[str, str]) -> None:
    async with aio_client.InferenceServerClient(target, **tls) as client:
        inputs = [aio_client.InferInput("x", X.shape, "FP32").set_data_from_numpy(X)]
        answer = await client.infer("double", inputs, headers=headers)
        assert np.array_equal(answer.as_numpy("y"), X * 2)


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("all as it should be")
