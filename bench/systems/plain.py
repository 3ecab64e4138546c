"""PyTorch without a compiler: eager, and one sequential CUDA Graph."""

from __future__ import annotations

from bench.subject import Subject
from bench.systems.runners import Called, PlainGraph, watched_memory
from bench.systems.system import Capture, Prepared


def eager(subject: Subject) -> Capture:
    def capture() -> Prepared:
        runner = Called(subject.flat, subject.inputs)
        if not subject.on_cuda:
            return Prepared(runner, streams=1)
        runner.outputs = ()
        with watched_memory() as memory:
            runner.replay()
        return Prepared(runner, streams=1, peak_bytes=memory.peak_bytes)

    return capture


def sequential(subject: Subject) -> Capture:
    def capture() -> Prepared:
        runner = PlainGraph(subject.flat, subject.inputs)
        return Prepared(runner, streams=1, policy="sequential", peak_bytes=runner.peak_bytes)

    return capture
