"""Operator-parallel execution of PyTorch modules: a library of its own, below the server.

from opara_server.engine import optimize
fast = optimize(model, example_inputs, batch_sizes=[1, 8])
y = fast(x)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opara_server.engine.library import OptimizedModel, optimize

__all__ = ["OptimizedModel", "optimize"]


def __getattr__(name: str) -> Any:
    """Load PyTorch only for those who ask: the scheduling modules of this package do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from opara_server.engine import library  # noqa: PLC0415

    return getattr(library, name)
