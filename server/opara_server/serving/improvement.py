"""The search that goes on while its model serves: a thread waits for it, the executor switches between batches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial

from opara_server.engine.errors import EngineError
from opara_server.engine.plan import BucketPlan, Plan
from opara_server.engine.plan_store import SavedPlan
from opara_server.observe.logs import news_only
from opara_server.observe.metrics import Metrics
from opara_server.observe.occupancy import Sampler
from opara_server.serving.executor import Executor, Worker
from opara_server.serving.staging import Compiled

log = logging.getLogger(__name__)

TURN_S = 0.005  # for which requests wait at a time, or for one step that takes longer
END = object()  # of the steps


class StoppedError(Exception):
    """The server stops, or the model is unloaded: nobody waits for the search any more."""


class Improvement:
    """One model's. ``done``: called on the executor's thread with the plan that runs in the end."""

    def __init__(
        self,
        compiled: Compiled,
        worker: Worker,
        executor: Executor,
        metrics: Metrics,
        sampler: Sampler,
        done: Callable[[Plan], None],
    ) -> None:
        self._compiled = compiled
        self._worker = worker
        self._executor = executor
        self._metrics = metrics
        self._sampler = sampler
        self._done = done
        self._served = compiled.plan
        self._told = news_only(self._log)
        self._abandoned = False
        self._steps: Generator[None] | None = None  # of a switch under way

    def start(self) -> None:
        name = self._worker.name
        if self._served.device == "cpu":
            log.warning(
                "it serves while its schedules are searched for: on a CPU requests wait for seconds as it switches",
                extra={"model": name},
            )
        threading.Thread(target=self._run, name=f"opara-search-{self._worker.name}", daemon=True).start()

    def abandon(self) -> None:
        """The model is about to be closed, and with it what a switch under way has captured. Executor's thread."""
        self._abandoned = True
        if self._steps is not None:
            self._executor.bind(self._compiled.device)
            self._steps.close()
            self._executor.bind(None)

    def _run(self) -> None:
        name = self._worker.name
        try:
            self._search_and_switch()
            if self._compiled.plan.chosen == self._served.chosen:
                log.info("search finished, nothing faster found", extra={"model": name})
        except (CancelledError, StoppedError):
            log.info("the search is given up: its model serves no more", extra={"model": name})
        except EngineError as error:
            log.warning("the search failed, what runs goes on: %s", error, extra={"model": name})
        except Exception:
            log.exception("the search failed, what runs goes on", extra={"model": name})
        try:
            self._executor.run(self._end).result()
        except CancelledError:
            pass  # the server has stopped
        except Exception:
            log.exception("what runs is described as it was before the search", extra={"model": name})

    def _search_and_switch(self) -> None:
        """In a frame of its own: what it has read takes memory."""
        behind = self._compiled.behind
        assert behind is not None
        found = behind.search(self._report)
        for bucket in reversed(self._compiled.buckets):  # largest first: smaller graphs reuse its memory
            self._steps = self._switch(found, bucket)
            while self._executor.run(partial(self._advance, self._steps)).result():
                pass
        behind.save(found, self._compiled.plan)

    def _report(self, doing: str, share: float) -> None:
        if self._executor.stopping or self._abandoned:
            raise StoppedError
        self._told(doing, share)

    def _log(self, doing: str, share: float) -> None:
        log.info("behind serving: %s (%.0f %%)", doing, 100 * share, extra={"model": self._worker.name})

    def _log_outcome(self, before: BucketPlan, now: BucketPlan) -> None:
        what = {"model": self._worker.name, "batch_size": now.batch_size}
        if now.key != before.key:
            times = {"measured_us": round(now.measured_us, 1), "sequential_us": round(now.sequential_us, 1)}
            log.info("switched", extra=what | {"policy": now.policy} | times)
            return
        fastest = min((c for c in now.candidates[1:] if c.latest_us), key=lambda c: c.latest_us, default=None)
        found = {"found": fastest.label, "found_us": round(fastest.latest_us, 1)} if fastest else {}
        log.info("kept as it was", extra=what | {"measured_us": round(now.measured_us, 1)} | found)

    def _switch(self, found: SavedPlan, bucket: int) -> Generator[None]:
        before = self._compiled.plan.bucket(bucket)
        log.info("behind serving: verifying and measuring batch size %d", bucket, extra={"model": self._worker.name})
        graph = yield from self._compiled.improve(found, bucket)
        self._log_outcome(before, self._compiled.plan.bucket(bucket))
        self._worker.lanes.switch(bucket, graph)
        timing = self._worker.lanes.warm(bucket)
        self._worker.batcher.ran(bucket, timing.total_s, timing.replay_s)
        yield
        self._sampler.sample(self._worker.name, self._compiled.plan.bucket(bucket), graph)

    def _advance(self, steps: Generator[None]) -> bool:
        """Executor's thread: some of the ``steps``, while requests wait. Whether any are left."""
        if self._executor.stopping or self._abandoned or not self._executor.runs(self._worker.name):
            raise StoppedError
        device, end = self._compiled.device, time.monotonic() + TURN_S
        self._executor.bind(device)
        try:
            while next(steps, END) is not END:
                device.synchronize()  # what a step enqueued is part of it
                if time.monotonic() >= end:
                    return True
            return False
        except EngineError:
            raise
        except Exception:
            self._executor.check_device(self._worker)
            raise
        finally:
            self._executor.bind(None)

    def _end(self) -> None:
        """Executor's thread. Metrics and descriptions are of the plan that runs, also where only the batch sizes before
        a failure were switched."""
        if self._abandoned:
            return
        self._steps = None
        self._compiled.settle()
        plan = self._compiled.plan
        if self._executor.runs(self._worker.name) and plan != self._served:
            self._executor.attach(replace(self._worker, metrics=self._metrics.model(plan)))
            self._done(plan)
