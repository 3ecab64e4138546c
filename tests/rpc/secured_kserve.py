"""KServe's client with its own options for TLS and tokens: ``secured_kserve.py TARGET CA CERTIFICATE KEY TOKEN``.

With the Python of an environment that has kserve and nothing of ours. The server has the model ``double``.
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

X = np.array([[1, 2]], np.float32)


async def main(target: str, ca: str, certificate: str, key: str, token: str) -> None:
    client = InferenceGRPCClient(
        target, use_ssl=True, root_certificates=ca, private_key=key, certificate_chain=certificate
    )
    async with client:
        assert await client.is_server_ready()
        given = InferInput("x", list(X.shape), "FP32")
        given.set_data_from_numpy(X)
        request = InferRequest("double", [given])
        answer = await client.infer(request, headers=[("authorization", f"Bearer {token}")])
        assert np.array_equal(answer.outputs[0].as_numpy(), X * 2)
        try:
            await client.infer(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return
            raise
        raise AssertionError("let in without a token")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    print("all as it should be")
