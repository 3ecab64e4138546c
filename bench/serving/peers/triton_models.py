"""tritonserver's Python back end: what each model's ``model.py`` calls TritonPythonModel."""

from __future__ import annotations

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from bench.serving.models.modules import mlp


class Identity:
    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        inputs = (pb_utils.get_input_tensor_by_name(request, "x") for request in requests)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x.as_numpy())]) for x in inputs]


class Mlp:
    """The requests of one call run as one batch."""

    def initialize(self, _args: dict[str, str]) -> None:
        self.module = mlp()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        parts = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        x = parts[0] if len(parts) == 1 else np.concatenate(parts)
        with torch.inference_mode():
            y = self.module(torch.from_numpy(x))["y"].numpy()
        ends = np.cumsum([len(part) for part in parts])[:-1]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", rows)]) for rows in np.split(y, ends)]
