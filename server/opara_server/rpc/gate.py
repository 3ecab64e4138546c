"""Access on grpc.aio: the first of the handlers that a server asks for a method."""

from __future__ import annotations

import grpc

from opara_server.rpc.access import Access
from opara_server.rpc.errors import Context, Failure


class Gate(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
    """Knows a method only for calls that are refused; for the others the next handler is asked."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        details = handler_call_details
        refused = self._access.refusal(details.method, details.invocation_metadata or ())
        return None if refused is None else _refusing(refused)


def _refusing(refused: Failure) -> grpc.RpcMethodHandler[bytes, bytes]:
    """As a stream, whatever the method is: nothing is read first."""

    async def refuse(_messages: object, context: Context) -> None:
        await context.abort(refused.code, refused.text)

    return grpc.stream_stream_rpc_method_handler(refuse)
