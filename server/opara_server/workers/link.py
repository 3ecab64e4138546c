"""What joins one worker to one engine process: shared memory, two pipes of records, a socket of messages."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from opara_server.workers import records, region


@dataclass(frozen=True)
class End:
    """One side's descriptors, which it owns. The engine reads ``submissions`` and writes ``completions``, a worker the
    other way round."""

    messages: int
    memory: int
    submissions: int
    completions: int

    @classmethod
    def of(cls, descriptors: Sequence[int]) -> End:
        return cls(*descriptors)

    @property
    def descriptors(self) -> tuple[int, int, int, int]:
        return self.messages, self.memory, self.submissions, self.completions

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def link() -> tuple[End, End]:
    """The engine's end and the worker's."""
    engine, worker = socket.socketpair()
    memory = region.create()
    submissions, completions = records.pipe(), records.pipe()
    return (
        End(engine.detach(), memory, submissions.reads, completions.writes),
        End(worker.detach(), os.dup(memory), submissions.writes, completions.reads),
    )
