"""Numbers in sentences."""

from __future__ import annotations


def counted(count: int, thing: str) -> str:
    """``1 stream``, ``2 streams``. ``thing``: one whose plural ends in s."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
