"""Names, protocols and command lines; nothing is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.serving import peering
from bench.serving.contestants import OTHERS, contestants
from bench.serving.payloads import PAYLOADS
from bench.serving.peering import MissingPeerError
from bench.serving.process import Place
from bench.serving.protocols import OpenInference


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folder = tmp_path / "place"
    folder.mkdir()
    return Place(5001, 5002, 5003, folder)


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Environments with nothing in them but what a launch copies."""
    monkeypatch.setattr(peering, "PEERS", tmp_path / "peers")
    for name in ("mlserver", "kserve", "pytriton"):
        python = tmp_path / "peers" / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
    server = peering.site_packages() / "pytriton" / "tritonserver"
    (server / "backends" / "python").mkdir(parents=True)
    stub = server / "python_backend_stubs" / peering.PYTHON_VERSION / "triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.write_text("stub")
    return tmp_path / "peers"


def test_ours_comes_with_every_set_of_options_in_every_protocol() -> None:
    found = contestants(["", "--transport cq --workers 2"], ["opara.v1", "oip"], ["opara"])
    assert [(one.name, one.processes, one.protocol.name) for one in found] == [
        ("opara", 1, "opara.v1"),
        ("opara (oip)", 1, "oip"),
        ("opara --transport cq --workers 2", 2, "opara.v1"),
        ("opara --transport cq --workers 2 (oip)", 2, "oip"),
    ]
    assert isinstance(found[1].protocol, OpenInference)


@pytest.mark.parametrize("options", ["--workers 3", "--workers=3"])
def test_workers_are_processes(options: str) -> None:
    assert contestants([options])[0].processes == 3


def test_the_options_are_in_our_command_line(place: Place) -> None:
    launch = contestants(["--transport cq"])[0].launch(place)
    assert launch.argv[-2:] == ("--transport", "cq")
    assert {"--port=5001", "--metrics-port=5003"} <= set(launch.argv)
    assert launch.ready == "READY"


def test_some_by_name_or_family() -> None:
    assert [one.name for one in contestants(only=["echo", "kserve"])] == ["echo-1", "echo-2", "kserve"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no server called torchserve: there are .*mlserver"):
        contestants(only=["torchserve"])
    with pytest.raises(ValueError, match=r"no protocol called rest: there are oip, opara\.v1"):
        contestants(protocols=["rest"])


def test_names_are_unique() -> None:
    names = [one.name for one in contestants(["", "--workers 2"], ["opara.v1", "oip"])]
    assert len(set(names)) == len(names)


def test_a_missing_peer_says_what_to_do(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peering, "PEERS", tmp_path)
    for one in OTHERS:
        if one.peer:
            with pytest.raises(MissingPeerError, match="make bench-peers"):
                one.launch(place)


@pytest.mark.usefixtures("peers")
def test_mlserver_finds_its_settings_and_models(place: Place) -> None:
    launch = peering.mlserver(place)
    settings = json.loads((place.folder / "settings.json").read_text())
    assert launch.argv[1:] == ("start", str(place.folder))
    assert (settings["grpc_port"], settings["http_port"], settings["metrics_port"]) == (5001, 5002, 5003)
    models = [json.loads((place.folder / name / "model-settings.json").read_text()) for name in PAYLOADS]
    assert [model["name"] for model in models] == list(PAYLOADS)
    assert models[-1]["implementation"] == "bench.serving.peers.mlserver_models.Mlp"


@pytest.mark.usefixtures("peers")
def test_triton_finds_its_repository_and_back_end(place: Place) -> None:
    launch = peering.triton(place)
    config = (place.folder / "models" / "image" / "config.pbtxt").read_text()
    assert "dims: [3, 224, 224]" in config
    model = (place.folder / "models" / "mlp" / "1" / "model.py").read_text()
    assert "import Mlp as TritonPythonModel" in model
    compile(model, "model.py", "exec")
    assert (place.folder / "backends" / "python" / "triton_python_backend_stub").read_text() == "stub"
    assert "--grpc-port=5001" in launch.argv


@pytest.mark.usefixtures("peers")
def test_kserve_and_pytriton_get_their_ports(place: Place) -> None:
    assert {"--grpc_port=5001", "--http_port=5002"} <= set(peering.kserve(place).argv)
    assert peering.pytriton(place).argv[-3:] == ("5001", "5002", "5003")


def test_every_peer_is_pinned() -> None:
    for one in OTHERS:
        if one.peer:
            lines = (peering.SOURCES / f"{one.peer}.txt").read_text().splitlines()
            assert all("==" in line for line in lines if not line.startswith("#"))
            assert "torch==2.13.0" in lines
