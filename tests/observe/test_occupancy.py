"""A machine that cannot trace still serves."""

from __future__ import annotations

import pytest
import torch

from opara_server.engine.trace import Interval, Trace
from opara_server.observe.metrics import Metrics
from opara_server.observe.occupancy import REPLAYS, sample


class Graph:
    inputs: tuple[torch.Tensor, ...] = ()
    outputs: tuple[torch.Tensor, ...] = ()
    arena = torch.empty(0, dtype=torch.uint8)
    peak_bytes: int | None = None

    def __init__(self, trace: Trace | Exception) -> None:
        self._trace = trace
        self.traced = 0

    def replay(self) -> None:
        raise AssertionError("a sample only traces")

    def trace(self, replays: int) -> Trace:
        self.traced += replays
        if isinstance(self._trace, Exception):
            raise self._trace
        return self._trace

    def close(self) -> None:
        raise AssertionError("a sample only traces")


def test_what_was_traced_is_published() -> None:
    metrics, graph = Metrics(), Graph(Trace(((Interval(3, 0.0, 10.0),),)))
    sample(metrics, "m", 1, graph)
    assert graph.traced == REPLAYS
    labels = {"model": "m", "bucket": "1", "stream": "3"}
    assert metrics.registry.get_sample_value("opara_stream_busy_ratio", labels) == 1.0


@pytest.mark.parametrize("trace", [RuntimeError("CUPTI is not permitted"), Trace(())])
def test_a_failed_trace_is_a_warning(trace: Trace | Exception, caplog: pytest.LogCaptureFixture) -> None:
    sample(Metrics(), "m", 1, Graph(trace))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
