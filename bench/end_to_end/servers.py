"""The servers: ours with sets of options, a plain one with the module as it is and compiled, one without a model."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.end_to_end.tables import NETWORK
from bench.end_to_end.workloads import Workload
from bench.serving.contestants import ROOT
from bench.serving.process import Launch, Place


@dataclass(frozen=True)
class Server:
    """``ours``: whether it counts its requests and replays. ``computes``: whether its answers are the model's.
    ``lanes``: of the model, where not the server's own choice."""

    title: str
    launch: Callable[[Place, Path, Path, Workload], Launch]
    ours: bool = False
    computes: bool = True
    lanes: int | None = None


def opara(options: str, lanes: int | None = None) -> Server:
    """With ``options`` beside the necessary ones, as one would write them in a shell."""
    words = shlex.split(options)

    def launch(place: Place, models: Path, cache: Path, _workload: Workload) -> Launch:
        necessary = [f"--models={models}", f"--app-dir={ROOT}", f"--port={place.port}"]
        necessary += [f"--metrics-port={place.metrics_port}", f"--cache-dir={cache}"]
        command = (sys.executable, "-m", "opara_server.cli", "serve", *necessary, *words)
        return Launch(command, {"PYTHONPATH": _python_path()}, "READY")

    title = " ".join(("opara-serve", *words)) + ("" if lanes is None else f", {lanes} lanes")
    return Server(title, launch, ours=True, lanes=lanes)


def _plain(title: str, *options: str) -> Server:
    def launch(place: Place, models: Path, _cache: Path, workload: Workload) -> Launch:
        module = (sys.executable, "-m", "bench.end_to_end.plain", f"127.0.0.1:{place.port}", str(models))
        words = (*module, workload.model, f"--rows={workload.rows}", *options)
        return Launch(words, {"PYTHONPATH": _python_path()}, "READY")

    return Server(title, launch)


def network(answer_bytes: int, processes: int) -> Server:
    """Takes the same requests, and answers as many bytes as the model's answers have: what gRPC allows on this host."""

    def launch(place: Place, _models: Path, _cache: Path, _workload: Workload) -> Launch:
        module = (sys.executable, "-m", "bench.serving.echo", f"127.0.0.1:{place.port}")
        words = (*module, f"--processes={processes}", f"--answer-bytes={answer_bytes}")
        return Launch(words, {"PYTHONPATH": _python_path()}, "READY")

    return Server(f"{NETWORK}, {processes} process{'es' if processes > 1 else ''}", launch, computes=False)


def _python_path() -> str:
    return ":".join(path for path in (str(ROOT), *sys.path) if path)


EAGER = "grpc.aio and eager PyTorch"
PLAIN = (
    _plain(EAGER),
    _plain("grpc.aio and torch.compile, reduce-overhead", "--compile"),
)


def servers(option_sets: Sequence[str], lanes: Sequence[int | None]) -> list[Server]:
    """Ours with each set of options and each number of lanes, and those as one would write them."""
    return [*(opara(options, count) for options in option_sets for count in lanes), *PLAIN]
