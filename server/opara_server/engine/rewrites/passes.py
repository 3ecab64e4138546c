"""The table of rewrites, and the one function that runs them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from opara_server.engine.rewrites.attention import attention
from opara_server.engine.rewrites.conv_epilogues import conv_epilogues
from opara_server.engine.rewrites.deduplicate import deduplicate
from opara_server.engine.rewrites.depthwise import depthwise
from opara_server.engine.rewrites.edit import refresh, tidy
from opara_server.engine.rewrites.explicit_convolutions import convolutions_in_company, explicit_convolutions
from opara_server.engine.rewrites.explicit_kernels import explicit_kernels
from opara_server.engine.rewrites.explicit_linears import explicit_linears
from opara_server.engine.rewrites.fold_batch_norm import fold_batch_norm
from opara_server.engine.rewrites.fold_constants import fold_constants
from opara_server.engine.rewrites.fold_padding import fold_padding
from opara_server.engine.rewrites.idle_masks import idle_masks
from opara_server.engine.rewrites.linear_epilogues import linear_epilogues
from opara_server.engine.rewrites.merge_embeddings import merge_embeddings
from opara_server.engine.rewrites.merge_siblings import merge_linears
from opara_server.engine.rewrites.narrow_linears import narrow_linears
from opara_server.engine.rewrites.overflow_clamps import overflow_clamps
from opara_server.engine.rewrites.pad_channels import pad_channels
from opara_server.engine.rewrites.weights import Weights

log = logging.getLogger(__name__)

Rewrite = Callable[[GraphModule, Weights], int]  # changes the graph; how many times it applied
PASSES: Mapping[str, Rewrite] = {  # in the order in which they help each other
    "fold_constants": fold_constants,
    "idle_masks": idle_masks,
    "overflow_clamps": overflow_clamps,
    "attention": attention,
    "deduplicate": deduplicate,
    "fold_batch_norm": fold_batch_norm,
    "fold_padding": fold_padding,
    "merge_embeddings": merge_embeddings,
    "merge_linears": merge_linears,
    "pad_channels": pad_channels,
    "depthwise": depthwise,
    "narrow_linears": narrow_linears,
    "linear_epilogues": linear_epilogues,
    "conv_epilogues": conv_epilogues,
    "explicit_linears": explicit_linears,
    "explicit_convolutions": explicit_convolutions,
    "convolutions_in_company": convolutions_in_company,
    "explicit_kernels": explicit_kernels,
}


def apply(module: GraphModule, names: Sequence[str], weights: Weights | None = None) -> GraphModule:
    """A copy of ``module``, which comes from ``functional``, after the passes ``names``, in that order. It has the
    module's own weights, not copies of them. What its metadata says of results is true before and after each pass.

    ``weights``: shared by the programs of one model, so that new weights exist once for all of them.
    Raises KeyError for a name that PASSES does not have.
    """
    passes = {name: PASSES[name] for name in names}
    module = GraphModule(module, copy.deepcopy(module.graph))
    weights = Weights() if weights is None else weights
    with torch.inference_mode(False), torch.no_grad():  # what inference mode makes, no compiler takes
        FakeTensorMode.cache_clear()  # torch.export takes convolutions on channels_last images to be contiguous on
        refresh(module)  # GPUs, in 2.11, and those results are kept for the next who asks
        for name, rewrite in passes.items():
            count = rewrite(module, weights)
            tidy(module)
            if count:
                refresh(module)
            log.info("%s: %d times", name, count)
    return module
