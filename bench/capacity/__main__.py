"""Replicas for a load: one server measured, one, two and four predicted from it and measured, fleets simulated.

    python -m bench.capacity --only "envoy 4"

A measurement is of one proxy and one number of servers; those of earlier runs are kept. All else is made anew.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import typer

from bench.balancing.proxies import PROXIES as ALL_PROXIES
from bench.balancing.proxies import version
from bench.capacity.drawing import draw
from bench.capacity.measuring import calibrate, load
from bench.capacity.page import page
from bench.capacity.predicting import PROXIES, predicted, replica
from bench.capacity.studies import studies
from bench.environment import environment

RESULTS = Path(__file__).resolve().parents[1] / "results"
CALIBRATION = "calibration"
MEASURED = (("envoy", 1), ("envoy", 2), ("envoy", 4), ("haproxy", 4), ("nginx", 4))
SHARES = (0.3, 0.5, 0.7, 0.8, 0.9)
SEED = 7


def main(
    only: Annotated[str, typer.Option(help="One measurement: 'calibration' or as 'envoy 4'; 'none'.")] = "",
    seconds: Annotated[float, typer.Option(help="Of each load.")] = 20.0,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Measure, simulate, write the tables and plots."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "capacity.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"measured": {}}
    proxies = {proxy.name: proxy for proxy in ALL_PROXIES if proxy.program()}
    if only in ("", CALIBRATION):
        if "envoy" not in proxies:
            raise SystemExit("Envoy is not installed")
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(calibrate(proxies["envoy"], Path(folder)))
        results[CALIBRATION] = {"environment": _environment("envoy"), **found}
        _save(file, results)
    if CALIBRATION not in results:
        raise SystemExit(f"--only {CALIBRATION} comes first: nothing is known of one server")
    model = replica(results[CALIBRATION])
    for name, count in MEASURED:
        if name not in proxies or only not in ("", f"{name} {count}"):
            continue
        rates = [round(share * count * model.requests_per_s, 1) for share in SHARES]
        with tempfile.TemporaryDirectory() as folder:
            points = asyncio.run(load(proxies[name], count, rates, seconds, SEED, Path(folder)))
        settings = {"seconds": seconds, "seed": SEED, "proxy": name, "servers": count}
        results["measured"][f"{name} {count}"] = {
            "environment": _environment(name),
            "settings": settings,
            "points": [{"share": share, **point} for share, point in zip(SHARES, points, strict=True)],
        }
        _save(file, results)
    if only and only != "none":
        return
    for measured in results["measured"].values():
        settings = measured["settings"]
        balancer, count = PROXIES[settings["proxy"]], settings["servers"]
        measured["predicted"] = [
            predicted(model, balancer, count, point["rate"], settings["seconds"]) for point in measured["points"]
        ]
    results["studies"] = studies(model)
    _save(file, results)
    draw(results, out)
    (out / "capacity.md").write_text(page(results, model))


def _environment(proxy: str) -> dict[str, Any]:
    (program,) = (known for known in ALL_PROXIES if known.name == proxy)
    return environment() | {"grpc": grpc.__version__, "numpy": np.__version__, "proxy": f"{proxy} {version(program)}"}


def _save(file: Path, results: dict[str, Any]) -> None:
    file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
