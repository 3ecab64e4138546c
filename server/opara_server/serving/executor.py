"""One thread owns the device. It runs jobs (loading, switching graphs) and begins batches of all models, in turns.

Of a model with one lane a batch is begun and answered before the next; with more, another thread waits for batches in
the air and answers them, and the next is begun as soon as a lane is free. While it sleeps a helper may run a batch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from opara_server.serving.flights import Flight, Flights, Landed, Worker, fail, land
from opara_server.serving.staging import LaneDevice
from opara_server.serving.turns import Turns

__all__ = ["Executor", "Worker"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class Executor:
    """``start``, then ``run`` jobs and ``attach`` models from them, then ``stop``. It never starts again."""

    def __init__(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="opara-executor", daemon=True)
        self._wakes: SimpleQueue[None] = SimpleQueue()  # what an Event does in four times the time
        self._awake = threading.Lock()  # held by whoever runs batches: by the executor's thread, unless it sleeps
        self._wakes_up = True  # it has it, or is about to take it
        self._helper = 0  # the thread that runs batches while it sleeps
        self._lock = threading.Lock()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._workers: dict[str, Worker] = {}  # touched by the executor's thread only
        self._turns = Turns()
        self._flights = Flights(self.wake)
        self._stop_by = inf  # on time.monotonic(); anything less: stop once all queues are empty, or then
        self._stopped = False
        self._at_end: list[Callable[[], None]] = []
        self._lost: Callable[[str], None] | None = None
        self._failed: Callable[[], None] | None = None
        self._bound: LaneDevice | None = None
        self._binding = ExitStack()

    def start(self) -> None:
        self._flights.start()
        self._thread.start()

    def wake(self) -> None:
        """Look at the queues again: a request is there. Any thread."""
        if threading.get_ident() != self._helper:  # it looks before it sleeps
            self._wakes.put(None)

    def help(self) -> bool:
        """Run one batch on the calling thread, if it is a short one that any thread may run; whether it was.

        For the one thread that submits requests, before it sleeps: it runs the batch sooner than another thread wakes.
        From the first call on its requests wake nobody until then. Raises what the device does as it is left.
        """
        self._helper = threading.get_ident()
        worker: Worker | None = None
        wait_s: float | None = 0.0
        if not self._wakes_up and self._awake.acquire(blocking=False):
            try:
                worker, wait_s = self._next()
                if worker is not None and worker.brief:
                    with worker.lanes.device.bind():
                        self._begin_next_batch(worker, bound=True)
                    return True
            finally:
                self._awake.release()
        if (worker is not None or wait_s is not None) and self._wakes.empty():
            self._wakes.put(None)
        return False

    def run(self, job: Callable[[], T]) -> Future[T]:
        """Run ``job`` on the executor's thread, with no batch in the air, and after each job one if it waits. After the
        end the future is cancelled. Any thread."""
        future: Future[T] = Future()
        with self._lock:
            if self._stopped:
                future.cancel()
            else:
                self._jobs.append((job, future))
        self._wakes.put(None)
        return future

    def attach(self, worker: Worker) -> None:
        """From now on run its batches. Executor's thread."""
        self._workers[worker.name] = worker
        self._turns.rest(worker.share)

    def runs(self, name: str) -> bool:
        """Whether a model of that name is attached. Executor's thread."""
        return name in self._workers

    def detach(self, name: str) -> None:
        """Forget a model; what still waits in its queue is refused. Executor's thread."""
        if worker := self._workers.pop(name, None):
            worker.batcher.close(drop_queued=True)

    def finish(self, name: str) -> None:
        """Take no more requests of a model, run what waits in its queue, forget it. Executor's thread."""
        worker = self._workers.get(name)
        if worker is None:
            return
        worker.batcher.close(drop_queued=False)
        while worker.batcher.ready(time.monotonic()) is not None and time.monotonic() < self._stop_by:
            if self._flights.count < worker.lanes.count:
                self._begin_next_batch(worker)
            else:
                self._await_landing()
        self._await_all()
        self.bind(None)
        self.detach(name)

    def bind(self, device: LaneDevice | None) -> None:
        """Make ``device`` the thread's own; None: none, as every job finds it. Executor's thread."""
        if device is self._bound:
            return
        self._bound = None
        self._binding.close()
        if device is not None:
            self._binding.enter_context(device.bind())
            self._bound = device

    def at_end(self, job: Callable[[], None]) -> None:
        """Run ``job`` on the executor's thread as the last thing. Before ``start``."""
        self._at_end.append(job)

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """Call ``callback``, on the executor's thread, with the name of a model whose device runs nothing any more.
        Before ``start``."""
        self._lost = callback

    def on_failed(self, callback: Callable[[], None]) -> None:
        """Call ``callback``, on the executor's thread, if that ends by an error of ours: nothing runs any more. Before
        ``start``."""
        self._failed = callback

    @property
    def stopping(self) -> bool:
        return self._stop_by < inf

    def stop(self, grace_s: float) -> bool:
        """Take no more requests, finish what is queued and in flight, end the thread. Blocks; any thread but the own.

        False where ``grace_s`` did not suffice: what was still queued is refused, a batch in flight is left behind.
        """
        self._stop_by = time.monotonic() + grace_s
        self._wakes.put(None)
        self._thread.join(grace_s + 1.0)
        return not self._thread.is_alive() and time.monotonic() <= self._stop_by

    def _loop(self) -> None:
        self._awake.acquire()  # and it keeps it in the end
        try:
            while True:
                while not self._wakes.empty():  # before looking: what comes after it wakes us again
                    self._wakes.get_nowait()
                self._note_landed()
                worked = self._run_job()
                stopping = self.stopping
                if stopping:
                    self._close_queues()
                worker, wait_s = self._next()
                if worker is not None:
                    self._begin_next_batch(worker)
                elif worked:
                    continue
                elif stopping and not self._flights.count:
                    return
                else:
                    self._wakes_up = False
                    self._awake.release()
                    with suppress(Empty):
                        self._wakes.get(timeout=wait_s)
                    self._wakes_up = True  # else a helper might take it again and again
                    self._awake.acquire()
        except Exception:
            log.critical("nothing runs any more", exc_info=True)
            if self._failed is not None:
                self._failed()
        finally:
            self._end()

    def _close_queues(self) -> None:
        late = time.monotonic() > self._stop_by
        for worker in self._workers.values():
            worker.batcher.close(drop_queued=late)

    def _next(self) -> tuple[Worker | None, float | None]:
        """The model whose turn it is, of those with a batch that is due; or how long to wait for one (None: until
        woken). Where there is no room for its batch none has its turn before it, or others would keep it waiting."""
        now, in_the_air = time.monotonic(), self._flights.count
        chosen, soonest = None, inf
        for worker in self._workers.values():
            due = worker.batcher.ready(now)
            if due is not None and due <= now:
                if chosen is None or worker.share.start < chosen.share.start:
                    chosen = worker
            else:
                self._turns.rest(worker.share)
                soonest = min(soonest, inf if due is None else due)
        if chosen is not None and not chosen.has_room(in_the_air):
            chosen = None
        if chosen is not None:
            self._turns.begin(chosen.share)
        return chosen, None if soonest == inf else max(soonest - now, 0.0)

    def _begin_next_batch(self, worker: Worker, *, bound: bool = False) -> None:
        began = time.monotonic()
        try:
            batch = worker.batcher.take()
        except Exception:  # noqa: BLE001 - an error of ours, in this model's queue: the other models go on
            fail(worker, worker.batcher.abandon())
            worker.share.used(time.monotonic() - began)
            return
        if batch is None:
            return
        lane, alone, began = worker.lanes.take(), not self._flights.count, time.monotonic()
        try:
            if not bound:
                self.bind(worker.lanes.device)
            run = lane.begin(batch, alone=alone)
        except Exception:  # noqa: BLE001 - the edge of a batch: fail logs it, whatever it is
            fail(worker, batch)
            worker.lanes.give_back(lane)
            self.check_device(worker)
            worker.share.used(time.monotonic() - began)
            return
        if worker.lanes.count == 1:
            self._land(land(Flight(worker, lane, run, 0.0)))
            return
        expected_s = worker.batcher.expects(batch.bucket)
        worker.share.used(expected_s)
        self._flights.add(Flight(worker, lane, run, expected_s))

    def _note_landed(self) -> None:
        while (landed := self._flights.next_landed()) is not None:
            self._land(landed)

    def _land(self, landed: Landed) -> None:
        flight, worker = landed.flight, landed.flight.worker
        worker.lanes.give_back(flight.lane)
        if landed.failed and self.runs(worker.name):  # else it went with its device, which another batch has found lost
            self.check_device(worker)
        worker.share.used(landed.seconds - flight.charged_s)

    def _await_landing(self) -> None:
        self._wakes.get()
        self._note_landed()

    def _await_all(self) -> None:
        self._note_landed()
        while self._flights.count:
            self._await_landing()

    def check_device(self, worker: Worker) -> None:
        """After an error: once a GPU's context is broken, whatever one asks of it fails, in this process for good, and
        who waits for that is told. Executor's thread, to which a helper leaves it."""
        if threading.get_ident() == self._helper:
            self.run(partial(self.check_device, worker))
            return
        try:
            self.bind(worker.lanes.device)
            worker.lanes.device.synchronize()
        except Exception:  # noqa: BLE001 - whatever it is, the device has had its second chance
            if self._lost is not None:
                self._lost(worker.name)
            try:
                self.bind(None)
            except Exception:
                log.debug("cannot leave a lost device", exc_info=True)

    def _run_job(self) -> bool:
        with self._lock:
            if not self._jobs:
                return False
            job, future = self._jobs.popleft()
        self._await_all()
        self.bind(None)
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - the future's owner gets it
                future.set_exception(error)
        return True

    def _end(self) -> None:
        """Whatever ended the loop, nobody is left waiting."""
        with self._lock:
            self._stopped = True
            left = list(self._jobs)
        for _, future in left:
            future.cancel()
        self._flights.close()
        self._note_landed()
        for name in list(self._workers):
            self.detach(name)
        self.bind(None)
        for job in self._at_end:
            try:
                job()
            except Exception:
                log.exception("the end of the executor failed")
