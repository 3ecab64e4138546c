"""One caller that waits for each answer before it sends the next request: a child process, which prints JSON.

    python -m bench.serving.caller 127.0.0.1:50051 /opara.v1.InferenceService/Infer body.bin --seconds 2

A plain synchronous gRPC client, since that is what a user has. It sends bytes and knows no protocol, so that it takes
as long for every server, echoes included, of which nobody can ask what a model takes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np

MAX_MESSAGE_BYTES = 64 << 20
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.use_local_subchannel_pool", 1))
TIMEOUT_S = 10.0
Call = Callable[[bytes], bytes]


@contextmanager
def connected(target: str, method: str) -> Iterator[Call]:
    """A connection of its own. Calls raise grpc.RpcError."""
    with grpc.insecure_channel(target, CHANNEL_OPTIONS) as channel:
        stub = channel.unary_unary(method, request_serializer=None, response_deserializer=None)

        def call(message: bytes) -> bytes:
            answer: bytes = stub(message, timeout=TIMEOUT_S)
            return answer

        yield call


def latencies_us(call: Call, message: bytes, seconds: float) -> list[float]:
    """Of calls one after the other. Raises ValueError where two answers differ in length."""
    times = []
    length = len(call(message))
    now = time.perf_counter()
    end = now + seconds
    while now < end:
        begin = time.perf_counter()
        answer = call(message)
        now = time.perf_counter()
        times.append((now - begin) * 1e6)
        if len(answer) != length:
            raise ValueError(f"an answer of {len(answer)} bytes, where others have {length}")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the latency that one caller sees.")
    parser.add_argument("target")
    parser.add_argument("method")
    parser.add_argument("message", type=Path, help="file with the request's bytes, not framed")
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    message = arguments.message.read_bytes()
    with connected(arguments.target, arguments.method) as call:
        latencies_us(call, message, arguments.seconds / 4)  # warm-up
        times = latencies_us(call, message, arguments.seconds)
    p50, p99 = np.percentile(times, [50, 99])
    print(json.dumps({"count": len(times), "p50_us": round(p50, 1), "p99_us": round(p99, 1)}))


if __name__ == "__main__":
    main()
