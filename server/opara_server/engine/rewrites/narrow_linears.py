"""Matrix products with a few columns → multiplications and sums, which a compiler fuses with what is around them.

At small batches cuBLAS computes these in two kernels, a product of vectors and a reduction of its parts, and copies the
bias ahead of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls, value
from opara_server.engine.rewrites.weights import Weights

COLUMNS = 4
ROWS = 32
LENGTH = 8192  # of the sums: Inductor takes longer ones in two kernels, too
DTYPES = {torch.float16, torch.bfloat16, torch.float32}


def narrow_linears(module: GraphModule, _weights: Weights) -> int:
    """Returns how many products are gone: those with at most COLUMNS columns, ROWS rows and LENGTH terms. Sums are
    float32, as cuBLAS's are."""
    count = 0
    for node in calls(module, aten.linear.default, aten.addmm.default, aten.mm.default):
        product = _product(node)
        if product is None or not _is_narrow(product.x, node):
            continue
        node.replace_all_uses_with(_summed(Insert(module, node), product, value(node).dtype))
        count += 1
    return count


@dataclass(frozen=True)
class _Product:
    """``x`` [..., K] times ``weight`` [O, K], or [K, O] if ``turned``, plus ``bias``."""

    x: Node
    weight: Node
    turned: bool
    bias: Node | None


def _product(node: Node) -> _Product | None:
    given = arguments(node)
    if node.target is aten.linear.default:
        matrices = value(node).dim() > 1 and value(given["weight"]).dim() == 2
        return _Product(given["input"], given["weight"], False, given["bias"]) if matrices else None
    if node.target is aten.mm.default:
        return _Product(given["self"], given["mat2"], True, None)
    plain = given["alpha"] == given["beta"] == 1
    return _Product(given["mat1"], given["mat2"], True, given["self"]) if plain else None


def _is_narrow(x: Node, node: Node) -> bool:
    *rows, columns = value(node).shape
    return (
        value(node).dtype in DTYPES
        and 1 <= columns <= COLUMNS
        and 1 <= prod(rows) <= ROWS
        and 1 <= value(x).shape[-1] <= LENGTH
    )


def _summed(insert: Insert, product: _Product, dtype: torch.dtype) -> Node:
    def exact(node: Node) -> Node:
        return node if dtype == torch.float32 else insert.call(aten._to_copy.default, node, dtype=torch.float32)

    weight = insert.call(aten.t.default, product.weight) if product.turned else product.weight
    terms = insert.call(aten.mul.Tensor, insert.call(aten.unsqueeze.default, exact(product.x), -2), exact(weight))
    total = insert.call(aten.sum.dim_IntList, terms, [-1])
    if product.bias is not None:
        total = insert.call(aten.add.Tensor, total, exact(product.bias))
    return total if dtype == torch.float32 else insert.call(aten._to_copy.default, total, dtype=dtype)
