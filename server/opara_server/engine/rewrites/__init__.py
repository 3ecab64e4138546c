"""Rewrites of an exported module before any lowering: fewer and better kernels, the same results up to rounding.

``apply(functional(exported), names)``; PASSES has the names. The passes work on the graph of ``functional``: ATen calls
that write to nothing but, at its end, the module's inputs; fixed shapes, inference. The last passes' operators write to
memory that they are given; which of them are Triton kernels, to be had as machine code, is in TRITON_CALLS.
"""

from opara_server.engine.rewrites.explicit_kernels import TRITON_CALLS
from opara_server.engine.rewrites.functional import functional
from opara_server.engine.rewrites.passes import PASSES, apply
from opara_server.engine.rewrites.weights import Weights

__all__ = ["PASSES", "TRITON_CALLS", "Weights", "apply", "functional"]
