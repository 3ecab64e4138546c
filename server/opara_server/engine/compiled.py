"""A model that is ready to run, and may yet get better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from opara_server.engine.device import CapturedGraph, Device
from opara_server.engine.flat_module import FlatModule
from opara_server.engine.plan import BucketPlan, Plan
from opara_server.engine.plan_store import SavedPlan
from opara_server.engine.steps import Steps

Progress = Callable[[str, float], None]  # what is being done, and the share that is done: 0..1
EXPORTING = "exporting"  # the first that it says where there is no saved plan
MEASURING = "measuring"  # how it begins what it says before the device is needed idle


def forward_only(progress: Progress) -> Progress:
    """Shares that never go back: a search that failed begins anew."""
    furthest = 0.0

    def report(what: str, share: float) -> None:
        nonlocal furthest
        furthest = max(furthest, share)
        progress(what, furthest)

    return report


class Behind(Protocol):
    """The search of a model that runs its simplest graphs meanwhile."""

    def search(self, progress: Progress) -> SavedPlan:
        """Blocks for as long as the tuning budget says; from any thread. What ``progress`` raises ends it.

        Raises TuningError, LoweringError.
        """
        ...

    def finish(self, found: SavedPlan, bucket: int, serving: CapturedGraph) -> Steps[tuple[CapturedGraph, BucketPlan]]:
        """The graph to run from now on: one that was ``found``, or the one that is ``serving``. The model's thread,
        device idle. Raises EngineError."""
        ...

    def save(self, found: SavedPlan, plan: Plan) -> None:
        """For the next start, once all batch sizes are finished: of what was ``found`` that which runs by the ``plan``.
        From any thread: the device is not asked."""
        ...


class CompiledModel:
    """A model that is ready to run. All use from one thread at a time, inside ``device.bind()``.

    ``behind``: where the search is still to be done, else None.
    """

    def __init__(
        self,
        flat: FlatModule,
        device: Device,
        graphs: Mapping[int, CapturedGraph],
        plan: Plan,
        behind: Behind | None,
    ) -> None:
        self.inputs = flat.inputs
        self.outputs = flat.outputs
        self.device = device
        self.buckets = tuple(sorted(graphs))
        self.plan = plan
        self.rebuild = flat.rebuild  # a flat tuple of outputs → the module's own structure
        self.behind = behind
        self._graphs = dict(graphs)
        self._retired: list[CapturedGraph] = []  # kept: those that came after them live in the same memory

    def graph(self, bucket: int) -> CapturedGraph:
        return self._graphs[bucket]

    def improve(self, found: SavedPlan, bucket: int) -> Steps[CapturedGraph]:
        """The bucket's graph from now on: as the search behind has ``found``, where that is right and faster.

        The model's thread, device idle; between two steps its graphs may replay. The longest step is a capture. The
        graph that served till then is kept until ``close``: the graphs of a device are captured into one pool of
        memory, which PyTorch keeps whole for as long as one of them lives. Closing it would give back its outputs.
        """
        assert self.behind is not None
        serving = self._graphs[bucket]
        graph, plan = yield from self.behind.finish(found, bucket, serving)
        if graph is not serving:
            self._retired.append(serving)
            self._graphs[bucket] = graph
        others = [b for b in self.plan.buckets if b.batch_size != bucket]
        self.plan = replace(self.plan, buckets=tuple(sorted([*others, plan], key=lambda b: b.batch_size)))
        return graph

    def settle(self) -> None:
        """The search has ended, well or not: what only it needed is let go, and its memory given back."""
        self.behind = None
        self.device.trim()

    def close(self) -> None:
        """Free graphs, their memory and streams. The device must be idle."""
        for graph in (*self._graphs.values(), *self._retired):
            graph.close()
        self._graphs.clear()
        self._retired.clear()
        self.behind = None
        self.device.close()
