"""Stream occupancy, measured: traces of real replays, as metrics."""

from __future__ import annotations

import logging

from opara_server.engine.device import CapturedGraph
from opara_server.engine.errors import EngineError
from opara_server.engine.trace import occupancy
from opara_server.observe.metrics import Metrics

log = logging.getLogger(__name__)

REPLAYS = 10


def sample(metrics: Metrics, model: str, bucket: int, graph: CapturedGraph) -> None:
    """Trace some replays of ``graph`` and publish how busy its streams were.

    On the thread that owns the device, bound to it. A machine that does not let us trace still serves.
    """
    try:
        metrics.occupancy(model, bucket, occupancy(graph.trace(REPLAYS)))
    except (EngineError, RuntimeError, ValueError) as error:
        log.warning("stream occupancy cannot be measured: %s", error, extra={"model": model, "bucket": bucket})
