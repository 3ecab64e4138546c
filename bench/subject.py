"""What all systems of one cell group run: one module with its inputs, under one set of switches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bench.cells import CellKey
from bench.models import BenchModel, settle
from bench.models.settle import ROWS
from opara_server.engine.device import Device, open_device
from opara_server.engine.export import export_static
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.lower_aten import lower
from opara_server.engine.profile import Profile
from opara_server.engine.program import Program
from opara_server.engine.tensors import float32_precision, static_inputs, torch_dtype


@dataclass(frozen=True)
class Lowered:
    """The module's ATen operators, what they measured, and what it took to learn both."""

    program: Program
    profile: Profile
    lower_seconds: float
    profile_seconds: float


@dataclass(frozen=True)
class Subject:
    key: CellKey
    bench: BenchModel
    module: nn.Module
    flat: FlatModule
    inputs: tuple[Tensor, ...]
    device: Device
    seconds: float  # of timing, per system
    tuning_budget_s: float  # of this engine

    @property
    def on_cuda(self) -> bool:
        return self.device.kind == "cuda"

    @cached_property
    def operators(self) -> tuple[Program, float]:
        """ATen's, made when they are first asked for, and seconds. Raises EngineError where they cannot be had."""
        begin = time.perf_counter()
        program = lower(export_static(self.module, self.inputs), self.inputs)
        return program, time.perf_counter() - begin

    @cached_property
    def aten(self) -> Lowered:
        """Wants an idle device. Raises EngineError."""
        program, lower_seconds = self.operators
        begin = time.perf_counter()
        profile = self.device.profile(program)
        return Lowered(program, profile, lower_seconds, time.perf_counter() - begin)


@contextmanager
def opened_subject(
    key: CellKey, bench: BenchModel, device: str, seconds: float, tuning_budget_s: float
) -> Iterator[Subject]:
    """Inference mode, cuDNN choosing by measuring, TF32 allowed: for every system that runs inside."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    opened = open_device(device)
    try:
        module = _on_device(bench, key.dtype, opened)
        with opened.bind(), opened.tuning():
            specs = bench.inputs(key.dtype)
            flat = FlatModule(module, specs, key.batch, opened.torch_device(), bench.channels_last)
            inputs = static_inputs(specs, key.batch, opened.torch_device(), bench.channels_last)
            yield Subject(key, bench, module, flat, inputs, opened, seconds, tuning_budget_s)
    finally:
        opened.close()


def _on_device(bench: BenchModel, dtype: str, device: Device) -> nn.Module:
    module = bench.build().to(device.torch_device())
    if bench.channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settle(module, static_inputs(bench.inputs("float32"), ROWS, device.torch_device(), bench.channels_last))
    return module.to(torch_dtype(dtype))


def settings(subject: Subject) -> dict[str, Any]:
    return {
        "channels_last": subject.bench.channels_last,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32": list(float32_precision()),
        "inference_mode": torch.is_inference_mode_enabled(),
        "seconds": subject.seconds,
        "tuning_budget_s": subject.tuning_budget_s,
    }


def weights_bytes(module: nn.Module) -> int:
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
