"""Fingerprints of what a saved plan depends on: the calls that a module makes, the engine's own code, and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def calls_digest(module: nn.Module, inputs: Sequence[Tensor]) -> str:
    """Of every call of PyTorch's operators that ``module(*inputs)`` makes, with its arguments, and of what it returns:
    its graph at inputs of these shapes, whatever their values. ``inputs`` may be overwritten.

    Other than an export it follows what depends on data. That shows, since data is read by a call, too; and a module
    that cannot be exported has no saved plan. Raises whatever the module does under a dispatch mode of PyTorch's.
    """
    weights = [*module.named_parameters(), *module.named_buffers()]
    calls = _Watched([*weights, *((f"input {number}", tensor) for number, tensor in enumerate(inputs))])
    with calls:
        results = module(*inputs)
    leaves, structure = pytree.tree_flatten(results)
    calls.write(f"{structure}", leaves)
    return calls.digest.hexdigest()


class _Calls:
    """Calls written down. A tensor is told by where it is from: by the name of a weight or an input, or the number of
    the result that it is, and one that the code itself holds by its content."""

    def __init__(self, known: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()
        self.digest = sha256()
        self._names: dict[int, tuple[ref[Tensor], str]] = {}  # by id, as long as the tensor lives
        self._results = 0
        for name, tensor in known:
            self._name(tensor, name)

    def __torch_dispatch__(self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.write(f"{func}", args, kwargs)  # now: the call may change the content of what it is given
        results = func(*args, **kwargs)
        for result in pytree.tree_leaves(results):
            if isinstance(result, Tensor) and not self._known(result):
                self._name(result, f"result {self._results}")
                self._results += 1
        return results

    def write(self, *said: Any) -> None:
        self.digest.update(repr(pytree.tree_map_only(Tensor, self._told, said)).encode())

    def _told(self, tensor: Tensor) -> str:
        return self._known(tensor) or tensors_digest([("held", tensor)])

    def _known(self, tensor: Tensor) -> str:
        living, name = self._names.get(id(tensor), (None, ""))
        return name if living is not None and living() is tensor else ""

    def _name(self, tensor: Tensor, name: str) -> None:
        self._names[id(tensor)] = ref(tensor), name


class _Watched(_Calls, TorchDispatchMode):
    """The calls made while it is entered. For a mode with ``__torch_dispatch__`` in its own body PyTorch imports its
    compiler, which takes a second: to be told not to compile that."""


@cache
def sources_digest() -> str:
    """Of the engine's own code: another version may lower, schedule or rewrite otherwise."""
    digest = sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of their names, bytes, shapes, strides and dtypes."""
    digest = sha256()
    for name, given in tensors:
        tensor = given.detach().resolve_conj().resolve_neg()
        digest.update(f"{name}:{tensor.dtype}{tuple(tensor.shape)}{tensor.stride()}".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
