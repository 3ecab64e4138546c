"""docker-compose.yml is valid, and its services agree with each other and with the files that they mount."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.image.dockerfile import parse
from tests.deploy.command_line import server_config

JAEGER = "jaeger"
ROOT = Path(__file__).resolve().parents[2]


def compose() -> dict[str, Any]:
    composition: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return composition


def services() -> Mapping[str, Any]:
    found: Mapping[str, Any] = compose()["services"]
    return found


def checked(path: Path) -> int:
    """The exit status of the schema that Compose publishes, as check-jsonschema has it."""
    program = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(program, check=False, capture_output=True).returncode


FILES = ("docker-compose.yml", "docker-compose.gpu.yml")


@pytest.mark.parametrize("name", FILES)
def test_it_is_valid(name: str) -> None:
    assert checked(ROOT / name) == 0


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs Debian's docker-compose")
@pytest.mark.parametrize("files", [FILES[:1], FILES])
def test_compose_itself_has_nothing_to_say(files: tuple[str, ...]) -> None:
    command = ["docker-compose", *(f"--file={ROOT / name}" for name in files), "config"]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    assert said.stderr == ""
    server = yaml.safe_load(said.stdout)["services"]["server"]
    devices = server.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert (server["build"]["target"], [device["capabilities"] for device in devices]) == (
        ("cpu", []) if len(files) == 1 else ("cuda", [["gpu"]])
    )


def test_what_compose_would_refuse_is_found(tmp_path: Path) -> None:
    wrong = compose()
    wrong["services"]["server"]["readonly"] = wrong["services"]["server"].pop("read_only")
    (tmp_path / "compose.yml").write_text(yaml.safe_dump(wrong))
    assert checked(tmp_path / "compose.yml") == 1


def test_it_mounts_files_that_exist_and_gives_the_drain_its_time() -> None:
    mounted = [v.split(":")[0] for s in services().values() for v in s.get("volumes", ()) if v.startswith(".")]
    assert [path for path in mounted if not (ROOT / path).exists()] == []
    volumes = {v.split(":")[0] for s in services().values() for v in s.get("volumes", ()) if not v.startswith(".")}
    assert volumes == set(compose()["volumes"])
    config = server_config(services()["server"]["command"])
    stop_s = float(services()["server"]["stop_grace_period"].removesuffix("s"))
    assert stop_s > config.drain_delay_s + 2 * config.grace_s
    assert config.host == config.metrics_host == "0.0.0.0"  # published on the loopback only
    published = [port for service in services().values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_server_is_one_of_the_images_targets_with_a_read_only_root() -> None:
    server = services()["server"]
    targets = {yaml.safe_load((ROOT / name).read_text())["services"]["server"]["build"]["target"] for name in FILES}
    assert targets == {"cpu", "cuda"}
    assert targets <= {stage.name for stage in parse((ROOT / "Dockerfile").read_text()).stages}
    assert server["read_only"] is True
    assert (server["cap_drop"], server["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert any(place.startswith("/tmp:") for place in server["tmpfs"])
    assert f"plans:{server_config(server['command']).cache_dir}" in server["volumes"]


def test_prometheus_scrapes_the_metrics_port_under_the_name_that_compose_gives() -> None:
    config = server_config(services()["server"]["command"])
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (job,) = [job for job in prometheus["scrape_configs"] if job["job_name"] == "opara"]
    assert job["static_configs"] == [{"targets": [f"server:{config.metrics_port}"]}]
    (receiver,) = prometheus["alerting"]["alertmanagers"]
    assert receiver["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    assert "alertmanager" in services()


def test_grafana_is_given_the_data_source_and_the_folder_of_the_dashboards() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (traces,) = yaml.safe_load((provisioning / "datasources" / "jaeger.yml").read_text())["datasources"]
    assert traces["url"] == f"http://{JAEGER}:16686"
    (exemplar,) = source["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplar == {"name": "trace_id", "datasourceUid": traces["uid"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "opara.yml").read_text())["providers"]
    mounts = dict(v.split(":")[:2] for v in services()["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = Path(services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / "deploy" / "grafana" / "dashboards" / home.name).exists()


def test_spans_go_to_the_collector_that_is_there_and_exemplars_are_kept() -> None:
    server = services()["server"]
    assert server_config(server["command"]).tracing
    assert server["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://{JAEGER}:4317"
    assert "--enable-feature=exemplar-storage" in services()["prometheus"]["command"]


@pytest.mark.parametrize("name", ["prometheus", "alertmanager", "grafana", JAEGER])
def test_images_of_others_have_a_version(name: str) -> None:
    image = services()[name]["image"].split(":-")[1].removesuffix("}")
    assert ":" in image
    assert not image.endswith(":latest")
