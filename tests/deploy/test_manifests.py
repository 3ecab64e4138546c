"""The deployment files agree with each other and with the server's own defaults."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from opara_client.cli import main
from tests.certificates import Authority
from tests.deploy.command_line import server_config

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy" / "k8s"


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> Iterator[dict[str, Any]]:
    (kustomization,) = documents(K8S / "base" / "kustomization.yaml")
    for resource in kustomization["resources"]:
        yield from documents(K8S / "base" / resource)


def manifest(kind: str, name: str) -> dict[str, Any]:
    return next(m for m in manifests() if m["kind"] == kind and m["metadata"]["name"] == name)


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = manifest("Deployment", "opara-serve")["spec"]["template"]["spec"]
    return spec


def server_container() -> dict[str, Any]:
    (container,) = pod()["containers"]
    assert isinstance(container, dict)
    return container


def compose() -> dict[str, Any]:
    (composition,) = documents(ROOT / "docker-compose.yml")
    return composition


@pytest.mark.parametrize("folder", ["base", "gpu", "secure"])
def test_a_kustomization_names_only_files_that_exist_and_every_file_is_used(folder: str) -> None:
    (kustomization,) = documents(K8S / folder / "kustomization.yaml")
    named = [*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", ()))]
    assert [name for name in named if not (K8S / folder / name).exists()] == []
    files = {path.name for path in (K8S / folder).glob("*.yaml")} - {"kustomization.yaml"}
    assert files == {name for name in named if name.endswith(".yaml")}


def test_the_gpu_patch_meets_what_it_patches() -> None:
    (patch,) = documents(K8S / "gpu" / "gpu.yaml")
    target = manifest(patch["kind"], patch["metadata"]["name"])
    assert patch["apiVersion"] == target["apiVersion"]
    (patched,) = patch["spec"]["template"]["spec"]["containers"]
    assert patched["name"] == server_container()["name"]


def patched(name: str, target: dict[str, Any]) -> dict[str, Any]:
    """``target`` after the operations of a JSON patch, as many kinds of them as there are."""
    result = copy.deepcopy(target)
    (operations,) = documents(K8S / "secure" / name)
    for operation in cast("list[dict[str, Any]]", operations):
        *way, last = operation["path"].removeprefix("/").split("/")
        place: Any = result
        for part in way:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if operation["op"] == "add":
            assert (last, isinstance(place, list)) == ("-", True)
            place.append(operation["value"])
        else:
            assert operation["op"] == "replace"
            key: Any = int(last) if isinstance(place, list) else last
            place[key]  # it must be there
            place[key] = operation["value"]
    return result


def test_the_secure_patch_mounts_what_the_server_is_told_and_probes_with_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    spec = patched("secure.yaml", manifest("Deployment", "opara-serve"))["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    config = server_config(container["args"])
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for file in (config.tls_certificate, config.tls_key, config.token_file):
        assert file is not None
        assert "secret" in volumes[mounts[str(file.parent)]]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        program, *arguments = container[probe]["exec"]["command"]
        assert program == "opara-client"
        assert f"--ca={config.tls_certificate}" in arguments
        here = [argument.replace(str(config.tls_certificate), str(authority.file)) for argument in arguments]
        assert main([*here, "--target=127.0.0.1:1", "--timeout=0.1"]) == 1  # wrong usage would be 2
        assert "grpc" not in container[probe]
    readiness = container["readinessProbe"]
    assert (
        config.drain_delay_s > readiness["periodSeconds"] * readiness["failureThreshold"] + readiness["timeoutSeconds"]
    )
    service = patched("service.yaml", manifest("Service", "opara-serve"))
    assert service["spec"]["ports"][0]["appProtocol"] == "https"


def test_services_reach_ports_that_the_server_opens() -> None:
    config = server_config(server_container()["args"])
    opened = {port["name"]: port["containerPort"] for port in server_container()["ports"]}
    assert opened == {"grpc": config.port, "metrics": config.metrics_port}
    services = [m for m in manifests() if m["kind"] == "Service"]
    assert {s["metadata"]["name"]: s["spec"].get("clusterIP") for s in services} == {
        "opara-serve": None,
        "opara-serve-pods": "None",
    }
    for service in services:
        for port in service["spec"]["ports"]:
            assert opened[port["targetPort"]] == port["port"]


def test_every_probe_asks_the_grpc_port() -> None:
    config = server_config(server_container()["args"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server_container()[probe]["grpc"]["port"] == config.port


def test_a_pod_may_take_as_long_to_end_as_its_drain() -> None:
    config = server_config(server_container()["args"])
    before = server_container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["terminationGracePeriodSeconds"] > before + config.drain_delay_s + 2 * config.grace_s
    probe = server_container()["readinessProbe"]
    noticed_s = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert config.drain_delay_s > noticed_s, "the pod would stop serving before anyone has noticed"


def test_torch_starts_as_many_threads_as_the_pod_asks_for_processors() -> None:
    (threads,) = [variable for variable in server_container()["env"] if variable["name"] == "OMP_NUM_THREADS"]
    assert threads["valueFrom"] == {"resourceFieldRef": {"resource": "requests.cpu"}}
    assert int(server_container()["resources"]["requests"]["cpu"]) >= 1


def test_the_pod_can_write_only_where_something_is_mounted() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert server_container()["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {m["mountPath"]: m for m in server_container()["volumeMounts"]}
    config = server_config(server_container()["args"])
    assert mounts[str(config.models)]["readOnly"] is True
    assert "readOnly" not in mounts[str(config.cache_dir)]
    assert {m["name"] for m in mounts.values()} == {volume["name"] for volume in pod()["volumes"]}
    claim = next(v["persistentVolumeClaim"]["claimName"] for v in pod()["volumes"] if "persistentVolumeClaim" in v)
    assert manifest("PersistentVolumeClaim", claim)["spec"]["accessModes"] == ["ReadOnlyMany"]


def test_prometheus_scrapes_the_metrics_port_under_the_name_that_compose_gives() -> None:
    config = server_config(compose()["services"]["server"]["command"])
    (prometheus,) = documents(ROOT / "deploy" / "prometheus" / "prometheus.yml")
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{config.metrics_port}"]}]
    annotations = manifest("Deployment", "opara-serve")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(server_config(server_container()["args"]).metrics_port)


def test_compose_mounts_files_that_exist_and_gives_the_drain_its_time() -> None:
    services: Mapping[str, Any] = compose()["services"]
    assert set(services) == {"server", "prometheus", "grafana"}
    mounted = [v.split(":")[0] for s in services.values() for v in s["volumes"] if v.startswith(".")]
    assert [path for path in mounted if not (ROOT / path).exists()] == []
    config = server_config(services["server"]["command"])
    assert float(services["server"]["stop_grace_period"].removesuffix("s")) > config.drain_delay_s + 2 * config.grace_s
    assert config.host == config.metrics_host == "0.0.0.0"  # published on the loopback only
    published = [port for service in services.values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_grafana_is_given_the_data_source_and_the_folder_of_the_dashboard() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (sources,) = documents(provisioning / "datasources" / "prometheus.yml")
    (source,) = sources["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (providers,) = documents(provisioning / "dashboards" / "opara.yml")
    (provider,) = providers["providers"]
    mounts = dict(v.split(":")[:2] for v in compose()["services"]["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = Path(compose()["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / "deploy" / "grafana" / "dashboards" / home.name).exists()
