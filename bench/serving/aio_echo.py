"""An echo on grpc.aio and uvloop, raw bytes in and out: ``python -m bench.serving.aio_echo 127.0.0.1:50051``."""

from __future__ import annotations

import sys

import grpc
import uvloop

from bench.serving.echo import MAX_MESSAGE_BYTES


class EchoEverything(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in its stubs only
    def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(_echo)


async def _echo(request: bytes, _context: object) -> bytes:
    return request


async def serve(address: str) -> None:
    """Answers until it is killed."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
    server.add_generic_rpc_handlers((EchoEverything(),))
    server.add_insecure_port(address)
    await server.start()
    print("READY", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
