"""KServe's SDK: ``python -m bench.serving.peers.kserve_server --grpc_port ... --http_port ...``."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
from numpy.typing import NDArray

from bench.serving.models.modules import mlp


class IdentityModel(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True

    async def predict(self, payload: InferRequest, *_: object, **__: object) -> InferResponse:
        return _response(self.name, payload, payload.inputs[0].as_numpy())


class MlpModel(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.module = mlp()
        self.ready = True

    async def predict(self, payload: InferRequest, *_: object, **__: object) -> InferResponse:
        x = torch.from_numpy(payload.inputs[0].as_numpy().copy())  # what KServe gives is read-only
        with torch.inference_mode():
            return _response(self.name, payload, self.module(x)["y"].numpy())


def _response(name: str, request: InferRequest, y: NDArray[np.float32]) -> InferResponse:
    output = InferOutput("y", list(y.shape), "FP32")
    output.set_data_from_numpy(y, binary_data=True)
    return InferResponse(request.id, name, [output])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.parse_args()
    ModelServer().start([IdentityModel("tiny"), IdentityModel("image"), MlpModel("mlp")])
