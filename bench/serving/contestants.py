"""Who takes part: each server's name, protocol and command line. Another set of options of ours is one more line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

from bench.serving import peering
from bench.serving.process import Launch, Place
from bench.serving.protocols import Echo, OparaV1, OpenInference, WireProtocol
from opara_server.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
OPARA, ECHO = "opara", "echo"


@dataclass(frozen=True)
class Contestant:
    """``family``: what ratios are of, of which the best member counts. ``processes``: that take calls. ``launch`` may
    write into the place's folder. ``peer``: whose environment it runs in; empty: this one's."""

    name: str
    family: str
    title: str
    protocol: WireProtocol
    launch: Callable[[Place], Launch]
    processes: int = 1
    peer: str = ""

    def versions(self) -> dict[str, str]:
        """Of the packages that matter. Raises MissingPeerError."""
        if self.peer:
            return peering.versions(self.peer)
        return {"opara-serve": VERSION} | {name: version(name) for name in ("grpcio", "protobuf", "uvloop")}


def ours(options: str, protocol: WireProtocol) -> Contestant:
    """opara-server with ``options`` beside the necessary ones, as one would write them in a shell."""
    words = shlex.split(options)

    def launch(place: Place) -> Launch:
        necessary = [
            *(f"--models={ROOT / 'bench' / 'serving' / 'models'}", f"--app-dir={ROOT}", f"--port={place.port}"),
            *(f"--metrics-port={place.metrics_port}", f"--cache-dir={place.folder / 'plans'}", "--log-level=warning"),
        ]
        return Launch((sys.executable, "-m", "opara_server.cli", "serve", *necessary, *words), ready="READY")

    spoken = () if isinstance(protocol, OparaV1) else (f"({protocol.name})",)
    name = " ".join((OPARA, *words, *spoken))
    title = " ".join(("opara-serve", *words, *spoken))
    return Contestant(name, OPARA, title, protocol, launch, _workers(words))


def _workers(words: list[str]) -> int:
    """What ``--workers N`` or ``--workers=N`` says, 1 where neither stands there."""
    parts = " ".join(words).replace("=", " ").split()
    return int(parts[parts.index("--workers") + 1]) if "--workers" in parts else 1


def _echo(processes: int) -> Contestant:
    def launch(place: Place) -> Launch:
        module = (sys.executable, "-m", "bench.serving.echo", f"127.0.0.1:{place.port}")
        return Launch((*module, f"--processes={processes}"), {"PYTHONPATH": str(ROOT)}, "READY")

    title = f"bare completion-queue echo, {processes} process{'es' if processes > 1 else ''}"
    return Contestant(f"{ECHO}-{processes}", ECHO, title, Echo(), launch, processes)


def _aio_echo(place: Place) -> Launch:
    module = (sys.executable, "-m", "bench.serving.aio_echo", f"127.0.0.1:{place.port}")
    return Launch(module, {"PYTHONPATH": str(ROOT)}, "READY")


# Sets of options. One process for many callers, for a lone one, and with grpc.aio; then workers.
OURS = ("--transport cq", "--transport cq --busy-poll-us 500", "--transport aio", "--workers 1", "--workers 2")
PROTOCOLS = {protocol.name: protocol for protocol in (OparaV1(), OpenInference())}  # that ours may be asked in
OTHERS = (
    _echo(1),
    _echo(2),
    Contestant("aio-echo", "aio-echo", "bare grpc.aio echo, uvloop", Echo(), _aio_echo),
    Contestant("triton", "triton", "tritonserver, Python back end", OpenInference(), peering.triton, peer="pytriton"),
    Contestant("pytriton", "pytriton", "PyTriton", OpenInference(), peering.pytriton, peer="pytriton"),
    Contestant("kserve", "kserve", "KServe", OpenInference(), peering.kserve, peer="kserve"),
    Contestant("mlserver", "mlserver", "MLServer", OpenInference(), peering.mlserver, peer="mlserver"),
)


def contestants(
    option_sets: Sequence[str] = OURS, protocols: Sequence[str] = (OparaV1.name,), only: Collection[str] = ()
) -> list[Contestant]:
    """Ours with each of ``option_sets`` and in each of ``protocols``, and all others; or of these only some, by name or
    family. Raises ValueError on names that there are not."""
    if unknown := set(protocols) - set(PROTOCOLS):
        raise ValueError(f"no protocol called {_listed(unknown)}: there are {_listed(PROTOCOLS)}")
    own = [ours(options, PROTOCOLS[name]) for options, name in product(option_sets, protocols)]
    everyone = [*own, *OTHERS]
    known = {c.name for c in everyone} | {c.family for c in everyone}
    if unknown := set(only) - known:
        raise ValueError(f"no server called {_listed(unknown)}: there are {_listed(known)}")
    return [c for c in everyone if not only or c.name in only or c.family in only]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
