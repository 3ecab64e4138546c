"""Files that are read again when they change, as mounted secrets do: by a new link, a new inode or a new time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Version = tuple[tuple[int, int, int], ...]


def version(paths: Sequence[Path]) -> Version:
    """Another one whenever a file is another or was written to. Raises OSError where one is missing."""
    stats = [path.stat() for path in paths]
    return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)


def why(error: Exception) -> str:
    """What went wrong with a file, in a few words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
