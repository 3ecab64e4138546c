"""The paper's values (Opara, arXiv 2312.10351v2, IEEE TC 2025), figure by figure. Those of plots were read off them.

PyTorch 2.0, CUDA 11.7, batch 1 unless a batch size is named; mean of 1,000 runs. No torch in here.
"""

from __future__ import annotations

from dataclasses import dataclass

TURING, AMPERE = "RTX 2080 SUPER", "A100-PCIe-40GB"


@dataclass(frozen=True)
class Figure5Row:
    """Speed-ups over eager PyTorch; SM efficiency in per cent and peak memory in MB (weights included), each of the
    sequential CUDA Graph and of Opara."""

    gpu: str
    cuda_graph: float
    onnx_runtime: float
    wavefront: float
    nimble: float
    opara: float
    opara_over_cuda_graph: float
    sm_efficiency: tuple[float, float]
    peak_mb: tuple[float, float]


@dataclass(frozen=True)
class Table1Row:
    """Time to allocate streams, in ms."""

    opara_ms: float
    nimble_ms: float


FIGURE_2 = {TURING: 0.29, AMPERE: 0.103}  # what the launch order alone is worth, at most

FIGURE_5 = {
    "googlenet": Figure5Row(TURING, 2.25, 2.65, 3.5, 2.95, 3.83, 1.68, (39, 62), (139, 200)),
    "inception_v3": Figure5Row(TURING, 1.33, 1.6, 1.7, 1.67, 1.80, 1.34, (49, 67), (72, 121)),
    "deepfm": Figure5Row(TURING, 5.87, 3.73, 7.8, 8.4, 9.20, 1.57, (5, 12), (15, 40)),
    "nasnet_a_large": Figure5Row(AMPERE, 3.27, 1.83, 4.7, 4.93, 5.41, 1.65, (57, 84), (580, 1678)),
    "t5_small": Figure5Row(AMPERE, 3.66, 2.66, 3.66, 3.8, 4.18, 1.14, (28, 34), (253, 526)),
    "bert_base": Figure5Row(AMPERE, 3.76, 2.65, 3.98, 4.06, 4.06, 1.08, (58, 70), (441, 647)),
}

# Inception-v3, Opara over the sequential CUDA Graph, by batch size
FIGURE_8 = {1: 1.41, 2: 1.34, 4: 1.20, 8: 1.24, 16: 1.15, 32: 1.13}  # TURING
FIGURE_9 = {2: 1.52, 4: 1.44, 16: 1.27, 32: 1.09}  # AMPERE

TABLE_1 = {
    "bert_base": Table1Row(0.58, 20.8),
    "googlenet": Table1Row(0.27, 5.80),
    "nasnet_a_large": Table1Row(1.75, 257.8),
    "inception_v3": Table1Row(0.50, 14.4),
    "t5_small": Table1Row(2.8, 161.4),
}

GOOGLENET_STREAMS = {"opara": 28, "nimble": 4}
PROFILING_MS = 4.25
