"""Fingerprints of what a saved plan depends on: an exported graph, and tensors."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule


def graph_digest(exported: ExportedProgram) -> str:
    """Of its calls with their arguments, of what comes in and goes out, and of the constants it found in the code."""
    digest = sha256()
    for name, module in exported.graph_module.named_modules():
        if isinstance(module, GraphModule):
            digest.update(f"{name}:{module.code}".encode())
    digest.update(f"{exported.graph_signature}{exported.range_constraints}".encode())
    for name, constant in sorted(exported.constants.items()):
        content = tensors_digest([constant]) if isinstance(constant, Tensor) else repr(constant)
        digest.update(f"{name}:{content}".encode())
    return digest.hexdigest()


@cache
def sources_digest() -> str:
    """Of the engine's own code: another version may lower, schedule or rewrite otherwise."""
    digest = sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """Of their bytes, shapes, strides and dtypes."""
    digest = sha256()
    for given in tensors:
        tensor = given.resolve_conj().resolve_neg()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}{tensor.stride()}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
