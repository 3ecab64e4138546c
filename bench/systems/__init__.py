"""The systems that are compared, in the order in which they are captured and appear in tables."""

from __future__ import annotations

from bench.systems.compiled import called, in_one_graph
from bench.systems.plain import eager, sequential
from bench.systems.scheduled import ours, published
from bench.systems.system import NotRunnableError, Order, Prepared, System

__all__ = ["SYSTEMS", "NotRunnableError", "Prepared", "System"]

_ALL = (
    # torch.compile's own graphs come first: making them would free what graphs captured before still use.
    System("compile_reduce_overhead", called("reduce-overhead"), host_driven=True, in_a_tree=True),
    System("compile_max_autotune", called("max-autotune"), Order.LAST, host_driven=True, in_a_tree=True),
    System("graph_default", in_one_graph()),
    System("graph_freezing", in_one_graph(freezing=True)),
    System("graph_combo_kernels", in_one_graph(freezing=True, combo_kernels=True)),
    System("graph_conv_1x1_as_mm", in_one_graph(freezing=True, conv_1x1_as_mm=True), only_convolutional=True),
    System(
        "graph_max_autotune",
        in_one_graph(freezing=True, max_autotune=True, coordinate_descent_tuning=True),
        Order.LAST,
    ),
    System("eager", eager, Order.FIRST, needs_cuda=False, host_driven=True),
    System("sequential", sequential, Order.FIRST),
    System("aten", published("sequential"), Order.FIRST, needs_cuda=False, early=False),
    System("wavefront", published("wavefront"), Order.FIRST, needs_cuda=False, early=False),
    System("nimble", published("nimble"), Order.FIRST, needs_cuda=False, early=False),
    System("opara", published("opara"), Order.FIRST, needs_cuda=False, early=False),
    System("ours", ours, Order.BESIDES, needs_cuda=False, early=False),
)
SYSTEMS = {system.name: system for system in _ALL}
