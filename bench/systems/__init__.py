"""The systems that are compared, in the order in which they get ready and appear in tables."""

from __future__ import annotations

from bench.systems.compiled import called, in_one_graph
from bench.systems.plain import eager, sequential
from bench.systems.scheduled import ours, published
from bench.systems.system import NotRunnableError, Prepared, System

__all__ = ["SYSTEMS", "NotRunnableError", "Prepared", "System"]

_ALL = (
    # torch.compile's own graphs come first: making them would free what graphs captured before still use.
    System("compile_reduce_overhead", "torch.compile reduce-overhead", called("reduce-overhead"), host_driven=True),
    System("compile_max_autotune", "torch.compile max-autotune", called("max-autotune"), host_driven=True),
    System("graph_default", "torch.compile, one graph", in_one_graph()),
    System("graph_freezing", "the same, freezing", in_one_graph(options={"freezing": True})),
    System(
        "graph_combo_kernels",
        "the same, freezing and combo kernels",
        in_one_graph(options={"freezing": True, "combo_kernels": True}),
    ),
    System(
        "graph_conv_1x1_as_mm",
        "the same, freezing and 1x1 convolutions as products",
        in_one_graph(options={"freezing": True, "conv_1x1_as_mm": True}),
        only_convolutional=True,
    ),
    System("graph_max_autotune", "the same, max-autotune", in_one_graph(mode="max-autotune-no-cudagraphs")),
    System("eager", "eager", eager, needs_cuda=False, host_driven=True),
    System("sequential", "sequential CUDA Graph", sequential),
    System("wavefront", "wavefront", published("wavefront"), needs_cuda=False),
    System("nimble", "Nimble", published("nimble"), needs_cuda=False),
    System("opara", "Opara as published", published("opara"), needs_cuda=False),
    System("ours", "opara-serve", ours, needs_cuda=False),
)
SYSTEMS = {system.name: system for system in _ALL}
