"""Compiling small modules for the tests, on a device with a clock of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from opara_server.engine.build import compile_model
from opara_server.engine.compiled import CompiledModel
from opara_server.engine.options import BuildOptions
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import fill_random
from tests.engine.devices import ScriptedDevice, Spoil, nothing
from tests.engine.models import ROW

TWO_BUCKETS = BuildOptions((1, 4))


def streams_are_fast(streams: int, _replay: int) -> float:
    return 100.0 if streams == 1 else 50.0 + streams


def compiled(module: nn.Module, specs: tuple[TensorSpec, ...] = ROW, **options: Any) -> CompiledModel:
    device = options.pop("device", None) or ScriptedDevice(streams_are_fast)
    return compile_model("small", module.eval(), specs, device, replace(TWO_BUCKETS, **options))


def assert_right(model: CompiledModel, module: nn.Module) -> None:
    with model.device.bind():
        for bucket in model.buckets:
            graph = model.graph(bucket)
            fill_random(graph.inputs, model.inputs)
            expected = module(*[tensor.clone() for tensor in graph.inputs])
            graph.replay()
            assert all(len(output) == bucket for output in graph.outputs)
            torch.testing.assert_close(model.rebuild(graph.outputs), expected)


def wrong(_replay: int, outputs: Sequence[Tensor]) -> None:
    outputs[0][0, 0] += 1


def on_several_streams(streams: int) -> Spoil:
    return wrong if streams > 1 else nothing
