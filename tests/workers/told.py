"""The supervisor's end of a child that runs in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from opara_server.workers.control import Control


class Told(Control):
    """What a child says, here."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()

    def send(self, said: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:  # noqa: ARG002
        self.said.put_nowait(said)
