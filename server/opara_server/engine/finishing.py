"""From a choice to the graph that serves: captured, verified, and once more measured against the simplest."""

from __future__ import annotations

import logging
from dataclasses import replace

from opara_server.engine.capture import capture, capturing
from opara_server.engine.choice import Choice, Runnable
from opara_server.engine.device import CapturedGraph, Device
from opara_server.engine.errors import CaptureError, VerificationError
from opara_server.engine.select import MEASURE_SECONDS, Timing, measuring
from opara_server.engine.steps import Steps
from opara_server.engine.verify import Verifier

log = logging.getLogger(__name__)

GLANCE_SECONDS = 0.02  # of timing, per graph, where it was measured well before: 15 turns of most models


class Finisher:
    """Of the model called ``name``."""

    def __init__(self, name: str, device: Device, verifier: Verifier) -> None:
        self._name = name
        self._device = device
        self._verifier = verifier

    def finish(
        self, choice: Choice, *, reused: bool = False, serving: CapturedGraph | None = None
    ) -> Steps[tuple[CapturedGraph, Choice]]:
        """The graph that will serve: the best that is right, and still faster than the simplest, measured once more.
        A step is a capture, a run of the module, or a few replays. Raises CaptureError or VerificationError where not
        even the simplest will do.

        ``serving``: the simplest, where it runs already; it goes on where none is faster, and stays its owner's. Then
        operators run once ahead of a capture, each in a step. Else the simplest is captured to compare with, and
        closed.
        A ``reused`` choice is right or it is searched for anew: raises CaptureError, VerificationError. The simplest
        beside it is only to notice that something is badly wrong. It is not tuned, which would take seconds, and its
        time does not count as sequential's. Where it is faster all the same, it serves until the next start, and the
        saved plan stays: most likely the device has other work just now, beside which no search would find better.
        """
        while choice.winner != 0:
            try:
                graph = yield from self._verified(choice.best, behind=serving is not None)
            except (CaptureError, VerificationError) as error:
                if reused:
                    raise
                log.warning("%s: %s failed, the next best runs instead: %s", self._name, choice.chosen.label, error)
                reason = "wrong numbers" if isinstance(error, VerificationError) else "cannot be captured"
                choice = choice.falling_back(reason)
                continue
            try:
                before, now = yield from self._beside_simplest(graph, choice, reused=reused, serving=serving)
            except CaptureError as error:  # most likely there is no memory for two
                log.warning("%s: not measured again beside sequential: %s", self._name, error)
                return graph, replace(choice, others=())
            except BaseException:
                graph.close()
                raise
            choice = choice.confirmed(choice.sequential.latest_us if reused else before.median, now.median)
            if now.median < before.median:
                return graph, replace(choice, others=())
            log.warning("%s: measured again, %s is slower than sequential", self._name, choice.chosen.label)
            graph.close()
            choice = choice.falling_back("slower than sequential when measured again")
        graph = serving or (yield from self._verified(choice.simplest))
        if serving or not choice.sequential.measured_us:  # else just now, by a search that had the device to itself
            (alone,) = yield from measuring([graph], self._device, GLANCE_SECONDS)
            choice = choice.confirmed(alone.median, alone.median)
        return graph, choice

    def _beside_simplest(
        self, graph: CapturedGraph, choice: Choice, *, reused: bool, serving: CapturedGraph | None
    ) -> Steps[list[Timing]]:
        """Of the simplest and of ``graph``. Raises CaptureError where the simplest cannot be had beside it."""
        passing = None if serving else self._captured(choice.simplest, tuned=not reused, passing=True)
        try:
            pair = [g for g in (serving, passing, graph) if g is not None]
            return (yield from measuring(pair, self._device, GLANCE_SECONDS if reused else MEASURE_SECONDS))
        finally:
            if passing is not None:
                passing.close()

    def _captured(self, runnable: Runnable, *, tuned: bool = True, passing: bool = False) -> CapturedGraph:
        if not tuned:
            return capture(runnable.program, runnable.schedule, self._device, passing=passing)
        with self._device.tuning():
            return capture(runnable.program, runnable.schedule, self._device, passing=passing)

    def _verified(self, runnable: Runnable, *, behind: bool = False) -> Steps[CapturedGraph]:
        """``behind``: while others serve."""
        if behind:
            graph = yield from capturing(runnable.program, runnable.schedule, self._device)
        else:
            graph = self._captured(runnable)
        yield
        try:
            error = yield from self._verifier.check(graph)
        except BaseException:  # also where nobody takes the next step
            graph.close()
            raise
        log.debug("%s: error %.1e against float64", self._name, error)
        return graph
