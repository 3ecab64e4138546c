"""Strategic merge: a patch that looks like the resource. The schema of Kubernetes says which lists are merged item by
item, and by what; all others, and all lists of custom resources, are replaced whole."""

from __future__ import annotations

from typing import Any

from deploy.manifests.schemas import Shape


def merge(target: Any, patch: Any, shape: Shape) -> Any:
    """``target`` with ``patch`` laid over it; neither is changed. null removes a key. Raises ValueError at a directive
    (``$patch`` and the like), which this does not know."""
    if not isinstance(patch, dict):
        return patch
    if any(key.startswith("$") for key in patch):
        raise ValueError(f"directives are not supported: {sorted(patch)}")
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        below = shape.of(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, list) and isinstance(merged.get(key), list) and below.merge_key:
            merged[key] = _by_key(merged[key], value, below)
        else:
            merged[key] = merge(merged.get(key), value, below)
    return merged


def _by_key(target: list[Any], patch: list[Any], shape: Shape) -> list[Any]:
    """The patch's items first, each over the one of the same key, then those that it does not name."""
    key = shape.merge_key
    there = {item[key]: item for item in target}
    patched = [merge(there.get(item[key], {}), item, shape.items()) for item in patch]
    named = {item[key] for item in patch}
    return [*patched, *(item for item in target if item[key] not in named)]
