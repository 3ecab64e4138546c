"""Cells that nobody measured."""

from __future__ import annotations

from bench.cells import Cell, CellKey, SystemResult
from bench.systems import SYSTEMS

ENVIRONMENT: dict[str, str | int] = {"device": "cuda", "gpu": "Some GPU", "torch": "2.11", "date": "2026-01-02"}
SETTINGS = {"seconds": 0.3, "tuning_budget_s": 300.0}
SECONDS = {"compile": 40.0, "alone": 10.0}


def result(median_us: float | None, **more: object) -> SystemResult:
    host_us = 0.0 if median_us is None else median_us + 20
    known = {"host_us": host_us, "spread": 0.001, "streams": 1, "error": 1e-4, "verified": True, **more}
    return SystemResult(median_us=median_us, **known)  # type: ignore[arg-type]


def driven(host_us: float, **more: object) -> SystemResult:
    """A system that the host drives."""
    return result(None, **{"host_us": host_us, **more})


def cell(model: str, dtype: str = "float16", batch: int = 1, **medians: float) -> Cell:
    """By default everything that a real cell has, in round numbers: of what the host drives host times."""
    times = {"eager": 960.0, "sequential": 400.0, "opara": 250.0, "graph_default": 200.0, "ours": 100.0} | medians
    orders = {"Algorithm 2": 210.0, "program": 250.0, "depth first": 200.0}
    intervals = [[0, 0.0, 60.0], [1, 10.0, 50.0], [0, 70.0, 100.0]]
    return Cell(
        key=CellKey(model, dtype, batch),
        environment=ENVIRONMENT,
        systems={
            name: (driven if SYSTEMS[name].host_driven else result)(
                time, sm_utilisation=0.25, peak_bytes=2**20, held_bytes=3 * 2**20, longest_path_us=time / 2
            )
            for name, time in times.items()
        },
        settings={"drift": 1.004, **SETTINGS},
        graph={"weights_bytes": 2**20, "profile_seconds": 0.5},
        studies={
            "launch_order": [{"name": name, "median_us": us, "spread": 0.001} for name, us in orders.items()],
            "timelines": {name: {"concurrency": 1.5, "intervals": intervals} for name in ("opara", "ours")},
        },
        seconds=SECONDS,
    )
