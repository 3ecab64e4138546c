"""Why a worker had to be replaced."""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """As the metric that counts them has it."""

    ENDED = "ended"  # by itself, or killed by others
    SILENT = "silent"  # it was asked several times whether it lives, and did not answer
    BROKEN = "broken"  # the engine did not understand it
