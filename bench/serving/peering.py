"""How the peers are started, each in a virtual environment of its own (``make bench-peers``)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from string import Template

from bench.serving.payloads import PAYLOADS
from bench.serving.process import Launch, Place

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".opara-cache" / "peers"
SOURCES = Path(__file__).parent / "peers"
MAX_MESSAGE_BYTES = 64 << 20
PYTHON_VERSION = sysconfig.get_python_version()  # of the peers, too: make uses one interpreter for all

_TRITON_CONFIG = Template("""\
backend: "python"
max_batch_size: 32
input [{ name: "x", data_type: TYPE_FP32, dims: $dims_in }]
output [{ name: "y", data_type: TYPE_FP32, dims: $dims_out }]
instance_group [{ count: 2, kind: KIND_CPU }]
dynamic_batching { }
""")
_TRITON_MODEL = """\
import sys

sys.path.insert(0, {root!r})
from bench.serving.peers.triton_models import {kind} as TritonPythonModel
"""
_OUTPUTS = {"tiny": (16,), "image": (3, 224, 224), "mlp": (10,)}


class MissingPeerError(Exception):
    """A peer's environment is not there; str() says how to make it."""


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment. Raises MissingPeerError."""
    python = PEERS / name / "bin" / "python"
    if not python.exists():
        raise MissingPeerError(f"{name} is not installed in {PEERS / name}: make bench-peers")
    return python


def versions(name: str) -> dict[str, str]:
    """Of what a peer's requirements pin and of its gRPC, as installed."""
    pinned = [line.split("==")[0] for line in (SOURCES / f"{name}.txt").read_text().splitlines() if "==" in line]
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    command = [str(python_of(name)), "-c", code, *pinned, "grpcio"]
    found: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def mlserver(place: Place) -> Launch:
    """In one process, and without its adaptive batching: with either it is slower."""
    python = python_of("mlserver")
    settings = {
        "host": "127.0.0.1",
        "http_port": place.http_port,
        "grpc_port": place.port,
        "metrics_port": place.metrics_port,
        "parallel_workers": 0,
        "debug": False,
        "grpc_max_message_length": MAX_MESSAGE_BYTES,
    }
    (place.folder / "settings.json").write_text(json.dumps(settings))
    for name in PAYLOADS:
        model = {"name": name, "implementation": f"bench.serving.peers.mlserver_models.{_kind(name)}"}
        (place.folder / name).mkdir()
        (place.folder / name / "model-settings.json").write_text(json.dumps(model))
    command = str(python.with_name("mlserver"))
    return Launch((command, "start", str(place.folder)), {"PYTHONPATH": str(ROOT)})


def kserve(place: Place) -> Launch:
    """With its logging off, which cost most of its speed."""
    argv = [
        *(str(python_of("kserve")), "-m", "bench.serving.peers.kserve_server"),
        *(f"--grpc_port={place.port}", f"--http_port={place.http_port}"),
        *("--enable_latency_logging=false", "--configure_logging=false"),
        *(
            f"--grpc_max_send_message_length={MAX_MESSAGE_BYTES}",
            f"--grpc_max_receive_message_length={MAX_MESSAGE_BYTES}",
        ),
    ]
    return Launch(tuple(argv), {"PYTHONPATH": str(ROOT)})


def pytriton(place: Place) -> Launch:
    ports = map(str, (place.port, place.http_port, place.metrics_port))
    argv = (str(python_of("pytriton")), "-m", "bench.serving.peers.pytriton_server", *ports)
    environment = {
        "PYTHONPATH": str(ROOT),
        "LD_LIBRARY_PATH": _libraries(site_packages()),
        "PYTRITON_HOME": str(place.folder),
    }
    return Launch(argv, environment)


def triton(place: Place) -> Launch:
    """The C++ server that PyTriton brings, with its Python back end and nothing of PyTriton. With dynamic batching it
    is faster on all payloads; with two instances, a third faster on the MLP."""
    site = site_packages()
    server = site / "pytriton" / "tritonserver"
    back_ends = place.folder / "backends"
    shutil.copytree(server / "backends", back_ends)
    stub = server / "python_backend_stubs" / PYTHON_VERSION / "triton_python_backend_stub"
    shutil.copy(stub, back_ends / "python")
    repository = place.folder / "models"
    for name, payload in PAYLOADS.items():
        version = repository / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(_TRITON_MODEL.format(root=str(ROOT), kind=_kind(name)))
        config = _TRITON_CONFIG.substitute(
            dims_in=list(payload.shape),
            dims_out=list(_OUTPUTS[name]),
        )
        (repository / name / "config.pbtxt").write_text(config)
    argv = [
        *(str(server / "bin" / "tritonserver"), f"--model-repository={repository}", f"--backend-directory={back_ends}"),
        *(f"--grpc-port={place.port}", f"--http-port={place.http_port}", f"--metrics-port={place.metrics_port}"),
        *("--grpc-address=127.0.0.1", "--http-address=127.0.0.1"),
        f"--backend-config=python,shm-region-prefix-name=opara_bench_{place.port}",
    ]
    # the stub's interpreter is isolated: it finds its packages by the first python3 of PATH, a virtual environment's
    path = f"{python_of('pytriton').parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "LD_LIBRARY_PATH": _libraries(site)}
    return Launch(tuple(argv), environment)


def _kind(model: str) -> str:
    """The name of the class that serves it, at every peer."""
    return "Mlp" if model == "mlp" else "Identity"


def site_packages() -> Path:
    """Of the environment that PyTriton is in. Raises MissingPeerError."""
    home = python_of("pytriton").parents[1]
    return home / "lib" / f"python{PYTHON_VERSION}" / "site-packages"


def _libraries(site: Path) -> str:
    """Where tritonserver and its stub find libpython and what was packed with them."""
    return f"{sysconfig.get_config_var('LIBDIR')}:{site / 'nvidia_pytriton.libs'}"
