"""What a system is to the suite: something that gets ready in two steps and then runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from bench.subject import Subject
from bench.timing import Runner
from opara_server.engine.trace import Trace

Capture = Callable[[], "Prepared"]


class NotRunnableError(Exception):
    """Why a system cannot run here; the text goes into its cell."""


@dataclass(frozen=True)
class Prepared:
    """A system that is ready. ``trace``: what ran when on which stream, where that can be told."""

    runner: Runner
    streams: int | None = None
    policy: str | None = None
    lowering: str | None = None
    longest_path_us: float | None = None
    peak_bytes: int | None = None
    detail: str = ""
    trace: Callable[[int], Trace] | None = None


@dataclass(frozen=True)
class System:
    """``compile`` does what needs no idle GPU (several cell groups may do it at once) and returns what is left to do,
    alone on the machine. ``host_driven``: the CPU launches every kernel of a run, or checks guards before it.
    ``early``: needs no profile, and is captured before anything is profiled. ``warm``: fills caches on disk beforehand;
    what it does does not count."""

    name: str
    compile: Callable[[Subject], Capture]
    needs_cuda: bool = True
    host_driven: bool = False
    early: bool = True
    only_convolutional: bool = False
    warm: Callable[[Subject], None] | None = None

    def start(self, subject: Subject) -> Capture:
        """Raises NotRunnableError, or whatever the system raises."""
        if self.needs_cuda and not subject.on_cuda:
            raise NotRunnableError("needs CUDA")
        if self.only_convolutional and not subject.bench.channels_last:
            raise NotRunnableError("for convolutional networks")
        return self.compile(subject)

    def warm_up(self, subject: Subject) -> None:
        """An error is for ``start`` to meet again, and to tell."""
        if self.warm:
            with suppress(Exception):
                self.warm(subject)
