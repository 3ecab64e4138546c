"""The bare completion-queue echo: what gRPC allows a Python process, with nothing behind it.

    python -m bench.serving.echo 127.0.0.1:50051 --processes 2

A loop straight on gRPC's completion queue, in ``grpc._cython.cygrpc``, the private layer under ``grpc.server`` (seen
working with grpcio 1.85.1). It answers every unary call of any method with the request's bytes. No deadlines, no
limits, no drain: it is a yardstick. With ``--answer-bytes`` it answers as many zeros instead: the network's part of a
model whose answers are of another size.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
from multiprocessing.connection import Connection

from grpc import StatusCode
from grpc._cython import cygrpc  # type: ignore[attr-defined]

ARRIVED, FINISHED = object(), object()  # tags: a new call; the last event of an answered one
ARMED_CALLS = 32  # with one the same loop answers a quarter less
MAX_MESSAGE_BYTES = 64 << 20
OK = StatusCode.OK.value[0]


def serve(address: str, started: Connection, answer: bytes | None = None) -> None:
    """Answers until it is killed: with ``answer``, else with the request. ``started`` is sent True once the port is
    open."""
    options = (("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES))
    server = cygrpc.Server(options, False)
    queue = cygrpc.CompletionQueue()
    server.register_completion_queue(queue)
    if not server.add_http2_port(address.encode()):
        raise OSError(f"cannot listen on {address}")
    server.start()
    for _ in range(ARMED_CALLS):
        server.request_call(queue, queue, ARRIVED)
    started.send(True)
    while True:
        event = queue.poll()
        if event.tag is ARRIVED:
            event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), event.call)
            server.request_call(queue, queue, ARRIVED)
        elif event.tag is not FINISHED:
            message = event.batch_operations[0].message()
            if message is not None:  # None: the client has gone
                event.tag.start_server_batch(_answer(message if answer is None else answer), FINISHED)


def _answer(message: bytes) -> tuple[cygrpc.Operation, ...]:
    return (
        cygrpc.SendInitialMetadataOperation(None, 0),
        cygrpc.SendMessageOperation(message, 0),
        cygrpc.SendStatusFromServerOperation(None, OK, b"", 0),
        cygrpc.ReceiveCloseOnServerOperation(0),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Echo every gRPC call.")
    parser.add_argument("address")
    parser.add_argument("--processes", type=int, default=1, help="that share the port")
    parser.add_argument("--answer-bytes", type=int, help="of each answer; default: the request")
    arguments = parser.parse_args()
    answer = None if arguments.answer_bytes is None else bytes(arguments.answer_bytes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # at whose end multiprocessing stops its daemons
    spawning = multiprocessing.get_context("spawn")
    heard, started = spawning.Pipe(duplex=False)
    servers = [
        spawning.Process(target=serve, args=(arguments.address, started, answer), daemon=True)
        for _ in range(arguments.processes)
    ]
    for server in servers:
        server.start()
    started.close()  # so that a server that ends unheard of is an EOFError here
    for _ in servers:
        heard.recv()
    print("READY", flush=True)
    for server in servers:
        server.join()


if __name__ == "__main__":
    main()
