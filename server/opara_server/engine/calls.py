"""What a call of PyTorch's operators or of a kernel reads, writes and moves, and where in the model it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from opara_server.engine.program import Call, Ref

aten = torch.ops.aten
ALLOCATIONS = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.empty_permuted,
    aten.new_empty,
    aten.new_empty_strided,
}
CHECKS = {
    aten._assert_tensor_metadata,
    aten._assert_scalar,
    aten.sym_constrain_range,
    aten.sym_constrain_range_for_size,
}
DETACHES = {aten.detach_}  # writes nothing, whatever its schema says: it forgets gradients, of which there are none
VIEWS_IN_PLACE = {  # they write no bytes; an export's later nodes take the result, and aliases keep their shape
    aten.as_strided_.default: aten.as_strided.default,
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.swapaxes_.default: aten.swapaxes.default,
    aten.swapdims_.default: aten.swapdims.default,
    aten.t_.default: aten.t.default,
    aten.transpose_.default: aten.transpose.int,
    aten.unsqueeze_.default: aten.unsqueeze.default,
}
RESIZES = {aten.resize_, aten.resize_as_, aten.set_}
SHAPE_READS = {aten.sym_size, aten.sym_stride, aten.sym_numel, aten.sym_storage_offset}


def refs(arguments: Any) -> Iterator[Ref]:
    if isinstance(arguments, Ref):
        yield arguments
    elif isinstance(arguments, (list, tuple)):
        for item in arguments:
            yield from refs(item)
    elif isinstance(arguments, dict):
        yield from refs(list(arguments.values()))


@runtime_checkable
class Kernel(Protocol):
    """A kernel that is no operator of PyTorch's: it returns nothing and writes to some of its arguments.

    ``written``: their positions. ``overwritten``: of those, the ones whose old content it does not look at.
    """

    written: tuple[int, ...]
    overwritten: tuple[int, ...]

    def __call__(self, *arguments: Any) -> None: ...


Target = OpOverload | Kernel


def written(target: Target, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Ref]:
    """The arguments that the kernel, or the operator's schema, says it writes to."""
    if not isinstance(target, OpOverload):
        yield from refs([args[position] for position in target.written])
        return
    for position, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = kwargs.get(argument.name) if argument.kwarg_only or position >= len(args) else args[position]
            yield from refs(given)


def read(target: Target, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Ref]:
    """The arguments whose content matters: all but those that are only overwritten (``out=``)."""
    if not isinstance(target, OpOverload):
        yield from refs([argument for i, argument in enumerate(args) if i not in target.overwritten])
        return
    outs = {argument.name for argument in target._schema.arguments if argument.is_out}
    yield from refs((args, {name: value for name, value in kwargs.items() if name not in outs}))


def refusal(target: OpOverload, node: Node) -> str:
    """Why a program cannot make this call; empty if it can."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols  # noqa: PLC0415 - takes half a second

    if free_unbacked_symbols(node.meta.get("val")):  # the export could not know it: ``x.item()``, ``x[mask]``
        return f"{target} makes a number or a shape of data"
    return f"{target} gives a tensor other memory" if target.overloadpacket in RESIZES else ""


def bytes_moved(value: Any) -> int:
    """What reading or writing the tensor moves: expanded dimensions count once."""
    return (
        min(value.numel() * value.element_size(), value.untyped_storage().nbytes()) if isinstance(value, Tensor) else 0
    )


def source_line(node: Node) -> str:
    """The model's own line that made the node: the innermost frame of its stack trace that is not PyTorch's."""
    trace: str = node.meta.get("stack_trace", "")
    frames = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    own = [frame for frame in frames if "/torch/" not in frame and "<eval_with_key>" not in frame]
    return (own or frames or ["unknown line"])[-1].removeprefix("File ")


def without_idle_mask(call: Call, content: Callable[[Ref], Tensor | None]) -> Call:
    """Attention without its mask where that is all True in every run. ``content``: of a tensor the same in all runs.

    An export cannot skip such a mask as the model would (transformers looks into it, which a trace must not), and with
    a mask PyTorch may not choose its fastest attention kernels.
    """
    if call.target is not aten.scaled_dot_product_attention.default:
        return call
    mask = call.args[3] if len(call.args) > 3 else call.kwargs.get("attn_mask")
    known = content(mask) if isinstance(mask, Ref) else None
    if known is None or known.dtype != torch.bool or not bool(known.all()):
        return call
    kwargs = {name: value for name, value in call.kwargs.items() if name != "attn_mask"}
    return replace(call, args=(*call.args[:3], None, *call.args[4:]), kwargs=kwargs)
