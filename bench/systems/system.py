"""What a system is to the suite: something that gets ready in two steps and then runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, auto

from torch import Tensor

from bench.background import Background
from bench.subject import Subject
from bench.timing import Runner
from opara_server.engine.plan import Candidate
from opara_server.engine.trace import Trace

Capture = Callable[[], "Prepared"]


class NotRunnableError(Exception):
    """Why a system cannot run here; the text goes into its cell."""


@dataclass(frozen=True)
class Prepared:
    """A system that is ready. ``candidates``: what a search chose from. ``arena``: memory that nobody reads between two
    runs, where that is known. ``trace``: what ran when on which stream, where that can be told."""

    runner: Runner
    streams: int | None = None
    policy: str | None = None
    lowering: str | None = None
    longest_path_us: float | None = None
    candidates: tuple[Candidate, ...] = ()
    peak_bytes: int | None = None
    arena: Tensor | None = None
    detail: str = ""
    trace: Callable[[int], Trace] | None = None


class Order(IntEnum):
    """In which systems compile."""

    BESIDES = auto()  # in processes of their own, while others do here
    FIRST = auto()  # what has nothing to compile, and what exports the module: Dynamo has nothing to forget yet
    HERE = auto()
    LAST = auto()  # what takes minutes, for which there may be no time


@dataclass(frozen=True)
class System:
    """``compile`` does what needs no idle GPU (several cell groups may do it at once) and returns what is left to do,
    alone on the GPU. ``host_driven``: the CPU launches every kernel of a run, or checks guards before it.
    ``early``: needs no profile, and is captured before anything is profiled. ``in_a_tree``: its graphs are those that
    PyTorch keeps in one tree per process, which a run that is cut short leaves unusable for all of them."""

    name: str
    compile: Callable[[Subject], Capture | Background[Prepared]]
    order: Order = Order.HERE
    needs_cuda: bool = True
    host_driven: bool = False
    early: bool = True
    only_convolutional: bool = False
    in_a_tree: bool = False

    def start(self, subject: Subject) -> Capture | Background[Prepared]:
        """Raises NotRunnableError, or whatever the system raises."""
        if self.needs_cuda and not subject.on_cuda:
            raise NotRunnableError("needs CUDA")
        if self.only_convolutional and not subject.bench.channels_last:
            raise NotRunnableError("for convolutional networks")
        return self.compile(subject)
