"""What is asked for: a model of the suite, and how many rows a request has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from bench.models import MODELS, settle
from bench.models.settle import ROWS
from bench.served import model_toml
from opara_client.perf_opara import OparaProtocol
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import static_inputs

BUCKETS = (1, 2, 4, 8, 16, 32)
METHOD = OparaProtocol().method


@dataclass(frozen=True)
class Workload:
    """``rows``: of each request."""

    model: str
    dtype: str
    rows: int

    @property
    def name(self) -> str:
        return f"{self.model} {self.dtype}, {self.rows} row{'s' if self.rows > 1 else ''} a request"

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return MODELS[self.model].inputs(self.dtype)

    @property
    def input_bytes(self) -> int:
        """Of one request's tensors."""
        return self.rows * sum(spec.row_bytes for spec in self.specs)

    def request(self, seed: int) -> bytes:
        """An InferRequest with random inputs in their range."""
        random = np.random.default_rng(seed)
        inputs = {spec.name: _draw(spec, self.rows, random) for spec in self.specs}
        return OparaProtocol().encode(self.model, inputs, {spec.name: spec.dtype for spec in self.specs})


# An image with much to copy, alone and several at once, and in twice as many bytes; a text with next to nothing, and
# next to nothing or a hidden state to answer.
WORKLOADS = (
    Workload("googlenet", "float16", 1),
    Workload("googlenet", "float16", 8),
    Workload("googlenet", "float32", 1),
    Workload("bert_embedding", "float16", 1),
    Workload("bert_base", "float16", 1),
)


def make_repository(folder: Path, workload: Workload, device: str, budget_s: float, lanes: int | None = None) -> None:
    """One model, with weights whose outputs depend on the inputs. ``lanes``: where not the server's own choice."""
    bench = MODELS[workload.model]
    torch.manual_seed(0)
    module = bench.build()
    settle(module, static_inputs(bench.inputs("float32"), ROWS, torch.device("cpu"), bench.channels_last))
    model = folder / workload.model
    model.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in module.state_dict().items()}, model / "weights.safetensors"
    )
    toml = model_toml(workload.model, workload.dtype, list(BUCKETS), device, budget_s)
    (model / "model.toml").write_text(toml if lanes is None else f"{toml}[batching]\nlanes = {lanes}\n")


def _draw(spec: TensorSpec, rows: int, random: np.random.Generator) -> np.ndarray:
    shape = (rows, *spec.shape)
    if spec.high is not None:
        return random.integers(int(spec.low or 0), int(spec.high), shape).astype(spec.dtype)
    return random.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
