"""PyTriton: ``python -m bench.serving.peers.pytriton_server GRPC_PORT HTTP_PORT METRICS_PORT``."""

from __future__ import annotations

import signal
import sys

import numpy as np
import torch
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.serving.models.modules import mlp

MODULE = mlp()
Floats = NDArray[np.float32]


@batch
def identity(x: Floats) -> list[Floats]:
    return [x]


@batch
def run_mlp(x: Floats) -> list[Floats]:
    with torch.inference_mode():
        return [MODULE(torch.from_numpy(x))["y"].numpy()]


def main(grpc_port: int, http_port: int, metrics_port: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server that it started is stopped, too
    config = TritonConfig(
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        grpc_address="127.0.0.1",
        http_address="127.0.0.1",
    )
    batching = ModelConfig(max_batch_size=32, batcher=DynamicBatcher(0))
    with Triton(config=config) as triton:
        for name, function, shape_in, shape_out in (
            ("tiny", identity, (16,), (16,)),
            ("image", identity, (3, 224, 224), (3, 224, 224)),
            ("mlp", run_mlp, (784,), (10,)),
        ):
            triton.bind(
                model_name=name,
                infer_func=function,
                inputs=[Tensor(name="x", dtype=np.float32, shape=shape_in)],
                outputs=[Tensor(name="y", dtype=np.float32, shape=shape_out)],
                config=batching,
            )
        triton.serve()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
