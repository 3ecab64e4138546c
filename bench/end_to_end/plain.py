"""A gRPC server of a PyTorch model as one would write it: grpc.aio and uvloop, the module called in a thread.

    python -m bench.end_to_end.plain 127.0.0.1:50051 MODELS_FOLDER googlenet --rows 1 --compile

Each request is a call of the module on its own rows. It speaks Infer of ``opara.v1``, so that the same load fits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import torch
import typer
import uvloop
from torch import Tensor
from torch.utils import _pytree as pytree

from bench.end_to_end.workloads import METHOD
from bench.models import MODELS
from bench.serving.echo import MAX_MESSAGE_BYTES
from opara_client import tensors
from opara_protos.v1 import inference_pb2 as pb
from opara_server.engine.device import open_device
from opara_server.engine.tensors import static_inputs
from opara_server.serving.repository import Entry

WARM_UP_RUNS = 5
Run = Callable[[tuple[Tensor, ...]], list[Tensor]]


class Handler(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in its stubs only
    """Calls ``run`` on a thread of its own: what torch.compile captures belongs to the thread that runs it."""

    def __init__(self, run: Run, names: tuple[str, ...], layout: torch.memory_format, device: torch.device) -> None:
        self._run = run
        self._names = names
        self._layout = layout
        self._device = device
        self._thread = ThreadPoolExecutor(1)

    def on_thread(self, work: Callable[[], None]) -> None:
        """Do ``work`` on the thread that runs, and wait."""
        self._thread.submit(work).result()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if details.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(self._infer)

    async def _infer(self, message: bytes, _context: object) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.answer, message)

    def answer(self, message: bytes) -> bytes:
        """An InferRequest to its InferResponse."""
        request = pb.InferRequest.FromString(message)
        given = {tensor.name: tensors.decode(tensor) for tensor in request.inputs}
        with torch.inference_mode():
            inputs = tuple(self._placed(given[name]) for name in self._names)
            outputs = [output.cpu().numpy() for output in self._run(inputs)]
        answer = pb.InferResponse(model=request.model, id=request.id)
        answer.outputs.extend(tensors.encode(f"output_{number}", array) for number, array in enumerate(outputs))
        return answer.SerializeToString()

    def _placed(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array.copy()).to(self._device)
        return tensor.contiguous(memory_format=self._layout) if tensor.dim() == 4 else tensor


async def serve(address: str, handler: Handler) -> None:
    """Answers until it is killed."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(address)
    await server.start()
    print("READY", flush=True)
    await server.wait_for_termination()


def main(
    address: str,
    models: Path,
    model: str,
    rows: Annotated[int, typer.Option(help="Of every request: what is compiled.")] = 1,
    compiled: Annotated[
        bool, typer.Option("--compile", help="With torch.compile, in its mode reduce-overhead.")
    ] = False,
) -> None:
    entry = Entry(model, models / model)
    config = entry.config()
    device = open_device(config.device).torch_device()
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    module = entry.module(config).to(device)
    if config.channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    function = torch.compile(module, dynamic=False, mode="reduce-overhead") if compiled else module

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves(function(*inputs)) if isinstance(leaf, Tensor)]

    specs = MODELS[model].inputs(config.dtype)
    handler = Handler(run, tuple(spec.name for spec in specs), layout, device)

    def warm_up() -> None:
        with torch.inference_mode():
            for _ in range(WARM_UP_RUNS):
                run(static_inputs(specs, rows, device, config.channels_last))

    handler.on_thread(warm_up)
    uvloop.run(serve(address, handler))


if __name__ == "__main__":
    typer.run(main)
