"""Closing one captured graph while others live: cuBLAS's and cuDNN's memory is theirs still."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from opara_server.engine.capture import capture
from opara_server.engine.device import CapturedGraph, Device
from opara_server.engine.export import export_static
from opara_server.engine.lower_aten import lower
from opara_server.engine.policies import make_schedule
from opara_server.engine.profile import Profile
from opara_server.engine.spec import TensorSpec
from opara_server.engine.tensors import static_inputs
from opara_server.engine.verify import error_norm
from tests.gpu.answers import BOUND
from tests.gpu.nets import Inceptions, built

WORKSPACE_BYTES = 32 << 20  # cuBLAS's, per stream, on Hopper
ROWS = 16


class LongSums(nn.Module):
    """Few results, each a long sum: cuBLAS sums up the parts of each in its workspace."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(1 << 15, 64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


NETS: dict[str, tuple[type[nn.Module], TensorSpec]] = {
    "cublas": (LongSums, TensorSpec("x", "float16", (1 << 15,))),
    "cudnn": (Inceptions, TensorSpec("image", "float16", (3, 32, 32))),
}


def captured(name: str, policy: str, device: Device, *, passing: bool = False) -> tuple[nn.Module, CapturedGraph]:
    build, spec = NETS[name]
    with torch.inference_mode(False):
        module = built(build, [spec]).cuda().half()
    inputs = static_inputs((spec,), ROWS, torch.device("cuda"), False)
    program = lower(export_static(module, inputs), inputs)
    schedule = make_schedule(program.graph, Profile.uniform(len(program.graph)), policy)
    return module, capture(program, schedule, device, passing=passing)


def assert_right(module: nn.Module, graph: CapturedGraph) -> None:
    for _ in range(20):
        graph.inputs[0].normal_()
        graph.replay()
        expected = module(*graph.inputs)
        wanted = expected["logits"] if isinstance(expected, dict) else expected
        assert error_norm(graph.outputs[0], wanted) <= BOUND


@pytest.mark.parametrize("passing", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_those_that_live_write_to_no_memory_that_is_somebody_else_s_by_now(
    name: str, passing: bool, device: Device
) -> None:
    living = [captured(other, policy, device) for other in NETS for policy in ("sequential", "nimble")]
    for policy in ("sequential", "nimble"):
        captured(name, policy, device, passing=passing)[1].close()
        others = [torch.full((WORKSPACE_BYTES,), 7, dtype=torch.uint8, device="cuda") for _ in range(8)]
        for module, graph in living:
            assert_right(module, graph)
        assert all(bool((other == 7).all()) for other in others)
        del others
        device.trim()
        for module, graph in living:
            assert_right(module, graph)
