"""A model on the GPU that serves at once: what it answers while its graphs are switched, step by step."""

from __future__ import annotations

import torch

from opara_server.engine.build import compile_model
from opara_server.engine.compiled import CompiledModel
from opara_server.engine.device import Device
from opara_server.engine.options import BuildOptions
from opara_server.engine.tensors import fill_random
from opara_server.engine.verify import error_norm
from tests.gpu.answers import BOUND
from tests.gpu.nets import make


def test_requests_between_the_steps_of_a_switch_get_right_answers(device: Device) -> None:
    module, specs = make("inceptions")
    options = BuildOptions((1, 4, 16), policy="nimble", lowering="aten", tuning_budget_s=30.0, tune_behind=True)
    model = compile_model("inceptions", module, specs, device, options)
    assert {bucket.policy for bucket in model.plan.buckets} == {"sequential"}
    assert model.behind is not None
    found = model.behind.search(lambda _what, _share: None)
    assert "nimble" in {bucket.policy for bucket in found.plan.buckets}
    for bucket in reversed(model.buckets):
        for _ in model.improve(found, bucket):
            assert_right(model, module)
    assert_right(model, module)


def assert_right(model: CompiledModel, module: torch.nn.Module) -> None:
    for bucket in model.buckets:
        graph = model.graph(bucket)
        fill_random(graph.inputs, model.inputs)
        graph.replay()
        got = model.rebuild(tuple(out.clone() for out in graph.outputs))["logits"]
        assert error_norm(got, module(*graph.inputs)["logits"]) <= BOUND
