"""Look-ups of the columns of one tensor of ids in a table each: one look-up in one table, as recommenders want it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opara_server.engine.rewrites.edit import Insert, arguments, aten, calls, constant, is_result, value
from opara_server.engine.rewrites.weights import Weights

LIMIT_BYTES = 1 << 30  # of a joined table, which takes memory besides the model's own


@dataclass(frozen=True)
class LookUp:
    """``table`` [rows, dim] at column ``column`` of ``ids`` [N, columns]."""

    node: Node
    ids: Node
    column: int
    table: Tensor


def merge_embeddings(module: GraphModule, weights: Weights) -> int:
    """Returns how many look-ups are gone. An id that its own table does not have, which PyTorch would refuse, finds
    another table's row."""
    groups: dict[tuple[Node, int, torch.dtype], list[LookUp]] = defaultdict(list)
    for node in calls(module, aten.embedding.default):
        if (found := _look_up(module, node)) is not None:
            groups[found.ids, found.table.shape[1], found.table.dtype].append(found)
    count = 0
    for group in groups.values():
        if len(group) > 1 and _fits(group):
            _merge(module, weights, group)
            count += len(group) - 1
    return count


def _look_up(module: GraphModule, node: Node) -> LookUp | None:
    given = arguments(node)
    table, column = constant(module, given["weight"]), given["indices"]
    if table is None or table.dim() != 2 or is_result(node):
        return None
    if column.target is getitem and column.args[0].target is aten.unbind.int:
        ids, dim, index = column.args[0].args[0], arguments(column.args[0])["dim"], column.args[1]
    elif column.target is aten.select.int:
        ids, dim, index = (arguments(column)[name] for name in ("self", "dim", "index"))
    else:
        return None
    shape = value(ids).shape
    return LookUp(node, ids, index % shape[1], table) if len(shape) == 2 and dim in {1, -1} else None


def _fits(group: Sequence[LookUp]) -> bool:
    """In memory, and the joined table's row numbers in the type of the ids."""
    rows = sum(len(look_up.table) for look_up in group)
    size = sum(look_up.table.nbytes for look_up in group)
    return size <= LIMIT_BYTES and rows <= torch.iinfo(value(group[0].ids).dtype).max


def _merge(module: GraphModule, weights: Weights, group: Sequence[LookUp]) -> None:
    first = group[0]
    insert = Insert(module, first.node)
    tables = [look_up.table for look_up in group]
    columns = [look_up.column for look_up in group]
    starts = [sum(len(table) for table in tables[:i]) for i in range(len(tables))]
    ids = first.ids
    if columns != list(range(value(ids).shape[1])):
        ids = insert.call(aten.index_select.default, ids, 1, insert.constant("columns", _numbers(columns, first)))
    rows = insert.call(aten.add.Tensor, ids, insert.constant("table_starts", _numbers(starts, first)))
    table = insert.constant("tables", weights.derive(torch.cat, tables))
    found = insert.call(aten.embedding.default, table, rows)
    parts = [insert.call(aten.select.int, found, 1, i) for i in range(len(group))]
    for look_up, part in zip(group, parts, strict=True):
        look_up.node.replace_all_uses_with(part)
    for user in list(parts[0].users):
        if (joined := _joined(module, user, found, parts)) is not None:
            user.replace_all_uses_with(joined)


def _numbers(numbers: list[int], like: LookUp) -> Tensor:
    """Of the ids' type, where the table is."""
    return torch.tensor(numbers, dtype=value(like.ids).dtype, device=like.table.device)


def _joined(module: GraphModule, user: Node, found: Node, parts: Sequence[Node]) -> Node | None:
    """What stacks all parts in their order, or joins them side by side, made of ``found`` as a whole; no result of the
    module's."""
    if user.target not in {aten.stack.default, aten.cat.default} or is_result(user):
        return None
    tensors, dim = list(arguments(user)["tensors"]), arguments(user)["dim"]
    start = tensors.index(parts[0])
    end = start + len(parts)
    if tensors[start:end] != list(parts):
        return None
    if user.target is aten.stack.default:
        return found if dim == 1 and tensors == list(parts) else None
    if dim not in {1, -1}:
        return None
    insert = Insert(module, user)
    flat = insert.call(aten.reshape.default, found, [-1, len(parts) * value(found).shape[2]])
    around = [*tensors[:start], flat, *tensors[end:]]
    return flat if around == [flat] else insert.call(aten.cat.default, around, 1)
