"""Linear layers with an activation that write their results where they are told, into planned memory.

Inductor does so with those that have none. A block that PyTorch's allocator holds for one stream shares its bytes with
no other stream's, nor with planned memory: T5's wide layers took half a mebibyte beside an arena of 1.7 in float16.
"""

from __future__ import annotations

from torch.fx import GraphModule

from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls, value
from opara_server.engine.rewrites.linear_operator import LINEAR_ACTIVATION
from opara_server.engine.rewrites.weights import Weights

ROWS_OUTSIDE = [0, 1]  # the dimensions of a result from the outermost to the innermost


def explicit_linears(module: GraphModule, _weights: Weights) -> int:
    """Returns how many of ``linear_epilogues``'s calls write where they are told."""
    count = 0
    for node in calls(module, aten._addmm_activation.default):
        given = arguments(node)
        if value(given["self"]).dim() != 1 or given["beta"] != 1 or given["alpha"] != 1:
            continue
        insert = Insert(module, node)
        out = insert.memory(value(node), ROWS_OUTSIDE)
        insert.call(LINEAR_ACTIVATION, given["mat1"], given["mat2"], given["self"], given["use_gelu"], out)
        node.replace_all_uses_with(out)
        count += 1
    return count
