"""From specs to tensors: static inputs of a bucket, and random content for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opara_server.engine.spec import TensorSpec


def torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def layout_name(tensor: Tensor) -> str:
    """``strided`` of a dense tensor, ``sparse_coo`` and the like of others."""
    return str(tensor.layout).removeprefix("torch.")


def static_inputs(
    specs: Sequence[TensorSpec], rows: int, device: torch.device, channels_last: bool
) -> tuple[Tensor, ...]:
    """Per spec a tensor [rows, *shape] of random values; images in channels_last layout where asked for."""
    tensors = []
    for spec in specs:
        layout = torch.channels_last if channels_last and len(spec.shape) == 3 else torch.contiguous_format
        tensors.append(
            torch.empty((rows, *spec.shape), dtype=torch_dtype(spec.dtype), device=device, memory_format=layout)
        )
    fill_random(tensors, specs)
    return tuple(tensors)


def lay_out_channels_last(module: nn.Module) -> None:
    """Its 4-D weights, in place. ``Module.to`` does it, too, but refuses a module that has 5-D ones beside them."""
    for weight in (*module.parameters(), *module.buffers()):
        if weight.dim() == 4:
            weight.data = weight.data.to(memory_format=torch.channels_last)


def float32_precision() -> tuple[str, str]:
    """How a GPU computes float32 matrix products and convolutions: "tf32", "ieee" or "none" (PyTorch's default)."""
    convolutions: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return torch.backends.cuda.matmul.fp32_precision, convolutions


def set_float32_precision(precision: tuple[str, str]) -> None:
    """As another process has it (``float32_precision``), by the older settings: PyTorch reads those, too, and refuses
    to where the newer ones were set."""
    if precision != float32_precision():
        torch.backends.cuda.matmul.allow_tf32 = precision[0] == "tf32"
        torch.backends.cudnn.allow_tf32 = precision[1] == "tf32"


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether it was expanded: such a tensor cannot be written to."""
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def fill_random(
    tensors: Sequence[Tensor], specs: Sequence[TensorSpec], generator: torch.Generator | None = None
) -> None:
    """Fresh values in each spec's range, in place; without a range standard normal, for integers 0 and 1.
    ``generator``: other than the device's own."""
    for tensor, spec in zip(tensors, specs, strict=True):
        if tensor.dtype == torch.bool:
            tensor.random_(0, 2, generator=generator)
        elif not tensor.is_floating_point():
            high = 2 if spec.high is None else int(spec.high)
            end = high if high < 2**63 else None  # None: up to the type's greatest
            tensor.random_(int(spec.low or 0), end, generator=generator)
        elif spec.low is None or spec.high is None:
            tensor.normal_(generator=generator)
        else:
            tensor.uniform_(spec.low, spec.high, generator=generator)


def same_values(one: Tensor, other: Tensor) -> bool:
    """Element by element, NaN equal to NaN."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())
