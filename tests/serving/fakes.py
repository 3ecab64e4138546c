"""A small real device for the serving core: tensors on the CPU, a model of one line, and a gate that holds replays."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import torch

from opara_server.engine.compiled import Behind
from opara_server.engine.device import CapturedGraph, Pinner, Queue, Stamp
from opara_server.engine.device_cpu import CpuStamp
from opara_server.engine.errors import CaptureError
from opara_server.engine.plan import BucketPlan, Plan
from opara_server.engine.plan_store import SavedPlan
from opara_server.engine.spec import TensorSpec
from opara_server.engine.steps import Steps
from opara_server.engine.trace import Interval, Trace
from opara_server.observe.metrics import Metrics
from opara_server.observe.tracing import Tracer
from opara_server.serving.batcher import Batcher, Rows
from opara_server.serving.errors import ServingError
from opara_server.serving.executor import Executor, Worker
from opara_server.serving.lanes import Lanes
from opara_server.serving.limits import Limits

PATIENCE_S = 200.0
X = TensorSpec("x", "float32", (2,))
Y = TensorSpec("y", "float32", (2,))
Forward = Callable[..., tuple[torch.Tensor, ...]]


def double(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (x * 2,)


@dataclass
class FakeStamp(CpuStamp):
    device: FakeDevice

    def wait(self) -> None:
        self.device.look()


@dataclass
class Clock:
    """``now``, in seconds: as the test says."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class FakeDevice:
    """``log`` is what happened, in order; ``gate`` closed holds every replay; ``error`` is what replays raise,
    and, where it is ``lost``, everything else that waits for it; ``pins``: it copies from memoryviews by itself;
    ``pinner``: how it pins others' memory; ``maps``: its static tensors are the host's own. ``clock``: what its stamps
    tell, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.log: list[str] = []
        self.replays: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)  # one for each replay that began
        self.error: Exception | None = None
        self.lost = False
        self.untraceable = False
        self.pins = False
        self.pinner: Pinner | None = None
        self.maps = False
        self._binders: Counter[int] = Counter()

    @property
    def bound(self) -> int:
        """By how many threads: it is made each one's own."""
        return self._binders.total()

    @property
    def bound_here(self) -> bool:
        """Once, by the calling thread."""
        return self._binders[threading.get_ident()] == 1

    def pinned(self, memory: bytes | memoryview) -> torch.Tensor | None:
        return torch.frombuffer(memory, dtype=torch.uint8) if self.pins and isinstance(memory, memoryview) else None

    def mapped(self, static: torch.Tensor) -> torch.Tensor | None:
        return static.view(static.numel()).view(torch.uint8) if self.maps and static.is_contiguous() else None

    def enqueue(self, work: Callable[[], None]) -> None:
        work()

    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), 0xAB, dtype=torch.uint8)  # whatever is not written shows

    def stamp(self) -> Stamp:
        self.log.append("stamp")
        return FakeStamp(self.clock(), self)

    def beside(self) -> Queue | None:
        return None

    def synchronize(self) -> None:
        self.log.append("synchronize")
        self.look()

    def look(self) -> None:
        if self.lost:
            raise RuntimeError("the context is gone")

    @contextmanager
    def bind(self) -> Iterator[None]:
        self._binders[threading.get_ident()] += 1
        with torch.inference_mode():
            yield
        self._binders[threading.get_ident()] -= 1
        if self.lost:
            raise RuntimeError("the context is gone")


class FakeGraph:
    def __init__(
        self,
        device: FakeDevice,
        bucket: int,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        forward: Forward,
    ) -> None:
        self._device, self._bucket, self._forward = device, bucket, forward
        self.inputs = tuple(_static(bucket, spec) for spec in inputs)
        self.outputs = tuple(_static(bucket, spec) for spec in outputs)
        self.arena = torch.empty(0, dtype=torch.uint8)
        self.peak_bytes: int | None = None
        self.anywhere = False
        self.fresh: frozenset[int] = frozenset()

    def replay(self) -> None:
        assert self._device.bound_here
        self._device.enqueue(self._run)

    def _run(self) -> None:
        self._device.log.append("replay")
        self._device.replays.append(self._bucket)
        self._device.entered.release()
        assert self._device.gate.wait(PATIENCE_S)
        if self._device.error is not None:
            raise self._device.error.with_traceback(None)
        results = self._forward(*self.inputs)
        self.outputs = tuple(results[i] if i in self.fresh else static for i, static in enumerate(self.outputs))
        for output, result in zip(self.outputs, results, strict=True):
            if output is not result:
                output.copy_(result)

    def trace(self, replays: int) -> Trace:
        """Two streams that overlap for half of the time."""
        self._device.log.append(f"trace {self._bucket}")
        if self._device.untraceable:
            raise RuntimeError("CUPTI is not permitted")
        replay = Interval(0, 0.0, 100.0, "first"), Interval(1, 50.0, 100.0, "second")
        return Trace((replay,) * replays)

    def close(self) -> None:
        pass


def _static(bucket: int, spec: TensorSpec) -> torch.Tensor:
    return torch.zeros(bucket, *spec.shape, dtype=getattr(torch, spec.dtype))


def make_plan(name: str, buckets: Sequence[int], **changes: object) -> Plan:
    return Plan(name, "cpu", "fake", tuple(_bucket_plan(b) for b in buckets), **changes)  # type: ignore[arg-type]


def _bucket_plan(batch_size: int) -> BucketPlan:
    return BucketPlan(batch_size, "opara", False, "aten", 3, 2, 2, 10.0, 2, 1, 10.0, 15.0, 1024)


class FakeCompiled:
    def __init__(
        self,
        name: str = "double",
        buckets: tuple[int, ...] = (1, 4, 8),
        *,
        inputs: tuple[TensorSpec, ...] = (X,),
        outputs: tuple[TensorSpec, ...] = (Y,),
        forward: Forward = double,
        device: FakeDevice | None = None,
    ) -> None:
        self.device = device or FakeDevice()
        self.inputs, self.outputs, self.buckets = inputs, outputs, buckets
        self.plan = make_plan(name, buckets)
        self.graphs = {b: FakeGraph(self.device, b, inputs, outputs, forward) for b in buckets}
        self.behind: Behind | None = None
        self.unimprovable = 0  # a batch size
        self.best_already = False
        self.steps = 3
        self.on_step: Callable[[], None] = lambda: None
        self.closed = False

    def graph(self, bucket: int) -> CapturedGraph:
        return self.graphs[bucket]

    def improve(self, _found: SavedPlan, bucket: int) -> Steps[CapturedGraph]:
        for _ in range(self.steps):
            assert self.device.bound_here
            self.on_step()
            yield
        if bucket == self.unimprovable:
            raise CaptureError("no room")
        if self.best_already:
            self.plan = replace(self.plan, buckets=tuple(replace(b, measured_us=9.0) for b in self.plan.buckets))
            return self.graphs[bucket]
        self.graphs[bucket] = FakeGraph(self.device, bucket, self.inputs, self.outputs, lambda x: (x * 3,))
        better = (replace(b, policy="improved") if b.batch_size == bucket else b for b in self.plan.buckets)
        self.plan = replace(self.plan, buckets=tuple(better))
        return self.graphs[bucket]

    def settle(self) -> None:
        self.behind = None

    def close(self) -> None:
        self.closed = True


@dataclass
class Answer:
    """What ``done`` was called with; more than once is an error of ours."""

    outcomes: list[Rows | ServingError] = field(default_factory=list)
    thread: str = ""
    _there: threading.Event = field(default_factory=threading.Event)

    def __call__(self, outcome: Rows | ServingError) -> None:
        if isinstance(outcome, Rows):  # its buffers hold only during the call
            outcome = Rows(tuple(map(bytes, outcome.tensors)), outcome.count)
        self.outcomes.append(outcome)
        self.thread = threading.current_thread().name
        self._there.set()

    @property
    def there(self) -> bool:
        return self._there.is_set()

    def outcome(self) -> Rows | ServingError:
        assert self._there.wait(PATIENCE_S), "no answer"
        assert len(self.outcomes) == 1
        return self.outcomes[0]

    def array(self, output: int = 0) -> np.ndarray:
        rows = self.outcome()
        assert isinstance(rows, Rows), rows
        return np.frombuffer(rows.tensors[output], dtype=np.float32).reshape(rows.count, -1)

    def error(self) -> ServingError:
        found = self.outcome()
        assert isinstance(found, ServingError), found
        return found


_sentinel = count(1)


def rows_of(values: Sequence[float] | int) -> Rows:
    """So many distinct rows, or rows with these values, of input X."""
    numbers = [float(next(_sentinel)) for _ in range(values)] if isinstance(values, int) else values
    return Rows((np.repeat(np.asarray(numbers, dtype=np.float32), 2).tobytes(),), len(numbers))


def doubled(rows: Rows) -> np.ndarray:
    return np.frombuffer(rows.tensors[0], dtype=np.float32).reshape(rows.count, -1) * 2


class Core:
    """An executor with models, as the registry would put them together."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.executor = Executor()
        self.executor.start()

    def serve(self, compiled: FakeCompiled, **settings: Any) -> Batcher:
        """``settings``: as of ``worker``."""
        worker = self.worker(compiled, **settings)
        self.executor.run(lambda: self.executor.attach(worker)).result(PATIENCE_S)
        return worker.batcher

    def worker(
        self,
        compiled: FakeCompiled,
        max_rows: int = 64,
        max_queue_rows: int = 4096,
        delay_s: float = 0.0,
        lanes: int = 1,
        tracer: Tracer | None = None,
    ) -> Worker:
        """Not attached yet."""
        name = compiled.plan.model
        self.metrics.add_model(name)
        model_metrics = self.metrics.model(compiled.plan)
        limits = Limits(compiled.buckets, max_rows, max_queue_rows, delay_s)
        batcher = Batcher(compiled.inputs, limits, model_metrics, self.executor.wake)
        return Worker(name, batcher, Lanes(compiled, lanes), model_metrics, tracer=tracer)

    def value(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(name, labels)
        assert found is not None, f"no sample {name}{labels}"
        return found


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds; fails when it does not within PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)
