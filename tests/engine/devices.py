"""The CPU device with a clock of its own, and with graphs that fail on order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from opara_server.engine.device import CapturedGraph
from opara_server.engine.device_cpu import CpuDevice, CpuStamp
from opara_server.engine.errors import CaptureError
from opara_server.engine.launch import LaunchList
from opara_server.engine.program import Program
from opara_server.engine.trace import Trace

Spoil = Callable[[int, Sequence[Tensor]], None]  # gets the replay's number, from 0, and the outputs


class SpoiledGraph:
    """Replays a graph and then does something to its outputs."""

    def __init__(self, graph: CapturedGraph, spoil: Spoil, on_replay: Callable[[], None] = lambda: None) -> None:
        self.inputs = graph.inputs
        self.outputs = graph.outputs
        self.arena = graph.arena
        self.peak_bytes = graph.peak_bytes
        self.anywhere, self.fresh = graph.anywhere, graph.fresh
        self.replays = 0
        self.closed = False
        self._graph = graph
        self._spoil = spoil
        self._on_replay = on_replay

    def replay(self) -> None:
        self._graph.replay()
        self.outputs = self._graph.outputs
        self._spoil(self.replays, self.outputs)
        self.replays += 1
        self._on_replay()

    def trace(self, replays: int) -> Trace:
        return self._graph.trace(replays)

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self._graph.close()


def nothing(_replay: int, _outputs: Sequence[Tensor]) -> None:
    pass


@dataclass
class ScriptedDevice(CpuDevice):
    """``microseconds(streams, replay)`` is what its clock says a replay takes, ``urgent_us`` what urgent streams add to
    it; ``spoil(streams)`` what happens to the outputs; graphs of ``refused`` numbers of streams cannot be captured."""

    microseconds: Callable[[int, int], float] = lambda _streams, _replay: 100.0
    spoil: Callable[[int], Spoil] = lambda _streams: nothing
    refused: Sequence[int] = ()
    urgent_us: float = 0.0
    graphs: list[SpoiledGraph] = field(default_factory=list)
    closed: bool = False
    clock_us: float = 0.0

    def __post_init__(self) -> None:
        super().__init__(threads=8)

    def capture(self, program: Program, launches: LaunchList, *, passing: bool = False) -> CapturedGraph:
        if launches.streams in self.refused:
            raise CaptureError(f"{launches.streams} streams are too many")

        def on_replay() -> None:
            self.clock_us += self.microseconds(launches.streams, graph.replays)
            self.clock_us += self.urgent_us if launches.urgent else 0.0

        graph = SpoiledGraph(
            super().capture(program, launches, passing=passing), self.spoil(launches.streams), on_replay
        )
        self.graphs.append(graph)
        return graph

    def stamp(self) -> CpuStamp:
        return CpuStamp(self.clock_us / 1e6)

    def close(self) -> None:
        super().close()
        self.closed = True
