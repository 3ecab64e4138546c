"""What is built from a checkout installs, and the bare install is the light client: no torch, no server."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.client.fake_server import FakeServer, default_models

ROOT = Path(__file__).parent.parent


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    # PYTHONPATH could put this checkout before what is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False, timeout=280
    )


def succeed(*command: str | Path) -> str:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    succeed(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a fresh environment with the wheel and what it asks for, no extras."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    succeed(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    return folder / "bin"


def contains(names: Sequence[str], *wanted: str) -> bool:
    return all(any(name.endswith(end) for name in names) for end in wanted)


def test_the_wheel_has_code_stubs_types_and_licence_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert contains(
        names,
        "opara_client/client.py",
        "opara_client/py.typed",
        "opara_server/cli.py",
        "opara_server/observe/page/page.html",
        "opara_server/observe/page/page.css",
        "opara_server/observe/page/page.js",
        "opara_protos/py.typed",
        "opara_protos/open_inference.binpb",
        "opara_protos/v1/inference_pb2.py",
        "opara_protos/v1/inference_pb2.pyi",
        "opara_protos/v1/inference_pb2_grpc.py",
        ".dist-info/licenses/LICENSE",
    )
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"opara_client", "opara_server", "opara_protos"}


def test_the_sdist_has_the_protocol_and_the_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert contains(
        names,
        "/protos/opara/v1/inference.proto",
        "/protos/inference/open_inference.proto",
        "/protos/generate.sh",
        "/tests/test_packaging.py",
    )
    assert contains(names, "/LICENSE", "/README.md", "/Makefile")
    assert not any("__pycache__" in name or "/.venv" in name for name in names)


def test_the_bare_install_is_light_and_consistent(bare: Path) -> None:
    succeed(bare / "python", "-m", "pip", "check")
    installed = succeed(bare / "python", "-m", "pip", "list", "--format=freeze").lower()
    assert "opara-serve" in installed
    for heavy in ("torch", "pydantic", "typer", "rich", "prometheus", "grpcio-health", "grpcio-tools"):
        assert f"\n{heavy}" not in f"\n{installed}"


def test_the_client_imports_and_can_be_made(bare: Path) -> None:
    code = "import opara_client; opara_client.OparaClient('127.0.0.1:1').close(); print(opara_client.__file__)"
    # -I: from this environment only, not from the working folder
    file = succeed(bare / "python", "-I", "-W", "error", "-c", code)
    assert Path(file.strip()).is_relative_to(bare.parent)


def test_the_server_command_names_what_is_missing(bare: Path) -> None:
    done = run(bare / "opara-server", "--help")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "pip install 'opara-serve[server]'" in line


def test_the_client_command_asks_a_server(bare: Path) -> None:
    with FakeServer(default_models()) as server:
        asked = "--target", server.target
        assert succeed(bare / "opara-client", "health", *asked) == "SERVING\n"
        printed = succeed(bare / "opara-client", "infer", "double", "--input", "x=[[1, 2]]", *asked)
        assert printed == "x  float32 [1, 2]\n[[2. 4.]]\n"
        load = ("perf", "double", "--rate", "100", "--warm-up", "0", "--duration", "0.2", *asked)
        loaded = run(bare / "opara-client", *load)  # ends with 1 where this machine answered nothing in 0.2 s
        assert ("\n100/s " in loaded.stdout, loaded.stderr) == (True, "")
        plot = run(bare / "opara-client", *load, "--plot", "latency.svg")
        missing = run(bare / "opara-client", "infer", "nobody", "--input", "x=[1]", *asked)
    assert plot.stderr == "opara-client: --plot needs matplotlib: pip install 'opara-serve[perf]'\n"
    assert (missing.returncode, missing.stderr) == (1, "opara-client: NOT_FOUND: no model 'nobody'\n")
    assert succeed(bare / "opara-client", "--version").startswith("opara-client 0.")
