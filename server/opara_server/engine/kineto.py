"""PyTorch's profiler (Kineto) on GPUs: what it records, as Chrome trace events.

It leaves CUDA's tracing interface when it has done. Else that stays in the way of every later launch: on an H200 with
PyTorch 2.11 the host took 13 to 27 us instead of 3 to launch a graph, and the graph itself ran up to 8 % longer. Kineto
does so of its own accord from 2026 on (pytorch/kineto#1264) where CUDA is 12.6 or later; older ones crashed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from opara_server.engine.errors import TuningError, first_line

DEVICE_WORK = {"kernel", "gpu_memcpy", "gpu_memset"}
LEAVES = "TEARDOWN_CUPTI"  # Kineto looks at it whenever it has done

Event = Mapping[str, Any]


@contextmanager
def recorded(*activities: ProfilerActivity) -> Iterator[list[Event]]:
    """The events of what runs inside; the list is filled at its end. Raises TuningError if no kernel is among them, or
    where they cannot be had: they come by way of a temporary file."""
    events: list[Event] = []
    os.environ.setdefault(LEAVES, "1")
    with torch.profiler.profile(activities=list(activities), acc_events=True) as profiler:
        yield events
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            events += json.loads(path.read_text())["traceEvents"]
    except (OSError, ValueError) as error:  # no folder for it, a full disk
        raise TuningError(f"the profiler's trace cannot be read: {first_line(error)}") from error
    if not any(event.get("cat") in DEVICE_WORK for event in events):
        raise TuningError("the profiler saw no kernel: is another profiler attached to this GPU?")


def start_kineto() -> None:
    """On the thread that imported PyTorch, before its profiler is used on any other: else Kineto says ERROR on stderr.
    Takes as long as the first use would. Nothing happens without a GPU."""
    if torch.cuda.is_available():
        os.environ.setdefault(LEAVES, "1")
        with torch.profiler.profile(activities=[ProfilerActivity.CUDA], acc_events=True):
            pass
