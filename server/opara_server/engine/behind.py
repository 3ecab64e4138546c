"""What is left of a build that did not search: the search that goes on behind a model that serves (compiled.Behind)."""

from __future__ import annotations

from typing import Protocol

from opara_server.engine.choice import UNREADABLE, Choice
from opara_server.engine.compiled import Progress
from opara_server.engine.device import CapturedGraph, Device
from opara_server.engine.errors import TuningError, first_line
from opara_server.engine.finishing import Finisher
from opara_server.engine.plan import BucketPlan, Plan
from opara_server.engine.plan_store import SavedPlan, as_it_runs
from opara_server.engine.program_json import ProgramReader
from opara_server.engine.steps import Steps


class Build(Protocol):
    """The parts of a build (build.py) that are needed afterwards."""

    device: Device
    finisher: Finisher

    def search(self, progress: Progress) -> SavedPlan: ...

    def reader(self, saved: SavedPlan) -> ProgramReader: ...

    def read(self, saved: SavedPlan, bucket: int, reader: ProgramReader) -> Steps[Choice]: ...

    def save(self, saved: SavedPlan) -> None: ...


class SearchBehind:
    def __init__(self, build: Build) -> None:
        self._build = build
        self._reader: ProgramReader | None = None  # one for all batch sizes: they share what it reads

    def search(self, progress: Progress) -> SavedPlan:
        return self._build.search(progress)

    def finish(self, found: SavedPlan, bucket: int, serving: CapturedGraph) -> Steps[tuple[CapturedGraph, BucketPlan]]:
        build, held = self._build, self._build.device.held_bytes()
        self._reader = self._reader or build.reader(found)
        try:
            choice = yield from build.read(found, bucket, self._reader)
        except UNREADABLE as error:
            raise TuningError(f"what was found cannot be read: {first_line(error)}") from error
        yield
        graph, choice = yield from build.finisher.finish(choice, serving=serving)
        return graph, choice.plan(bucket, build.device.held_bytes() - held, reused=False)

    def save(self, found: SavedPlan, plan: Plan) -> None:
        self._build.save(as_it_runs(found, plan))
