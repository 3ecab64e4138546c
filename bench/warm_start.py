"""How long the server takes until it is READY: the first time, when it searches, and again, when it has saved plans.

    python -m bench.warm_start --model googlenet

Wall time of a real ``opara-server serve`` process, from its start to the line READY, imports and all. The first start
leaves Python's bytecode for the others, as pip does when it installs; without it all code is compiled at each start,
which took 5 s more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.environment import environment
from bench.models import require_packages
from bench.selection import TUNING_BUDGET_S
from bench.served import model_toml
from opara_server.engine.compiled import MEASURING

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True)
class Start:
    """``searched``: whether there was no plan to be had, so that one was searched for."""

    searched: bool
    seconds: float


def start_server(models: Path, cache: Path) -> Start:
    """Until READY. Raises RuntimeError with the end of the log where the server ends instead."""
    log = cache.with_suffix(".log")
    command = [sys.executable, "-m", "opara_server.cli", "serve", f"--models={models}", f"--cache-dir={cache}"]
    command += ["--port=0", "--metrics-port=0", f"--app-dir={ROOT}"]
    environ = os.environ | {"PYTHONPYCACHEPREFIX": str(cache.with_name("bytecode"))}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    begin = time.perf_counter()
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ) as process,
    ):
        assert process.stdout
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
        process.send_signal(signal.SIGTERM)
    said = log.read_text()
    if not line.startswith("READY"):
        raise RuntimeError(f"not READY:\n{said[-2000:]}")
    return Start(MEASURING in said, round(seconds, 2))


def main(
    model: str = "googlenet",
    dtype: str = "float16",
    batch: Annotated[list[int] | None, typer.Option(help="Default: 1, 2, 4, 8, 16, 32.")] = None,
    device: str = "cuda",
    tuning_budget_s: Annotated[float, typer.Option(help="Of the first start.")] = TUNING_BUDGET_S,
    again: Annotated[int, typer.Option(min=1, help="Starts with the saved plan.")] = 3,
    results: Annotated[Path, typer.Option(help="Folder of the result.")] = RESULTS,
) -> None:
    """Start once without and several times with a saved plan."""
    require_packages([model])
    batches = batch or [1, 2, 4, 8, 16, 32]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "models" / "model"
        folder.mkdir(parents=True)
        (folder / "model.toml").write_text(model_toml(model, dtype, batches, device, tuning_budget_s))
        cache = Path(name) / "plans"
        starts = []
        for number in range(1 + again):
            starts.append(start_server(folder.parent, cache))
            what = "searched" if starts[-1].searched else "with the saved plan"
            typer.echo(f"{model} {dtype} {batches}, start {number + 1}, {what}: {starts[-1].seconds} s")
    report = {
        "environment": environment(),
        "model": model,
        "dtype": dtype,
        "batches": batches,
        "tuning_budget_s": tuning_budget_s,
        "starts": [asdict(start) for start in starts],
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / f"warm_start-{model}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
