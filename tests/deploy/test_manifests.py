"""The manifests agree with each other and with the server's own options and defaults."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from deploy.manifests.build import Resource
from deploy.manifests.rules import RESOURCE, prometheus_rule
from opara_client.cli import main
from opara_server.observe.metrics import Metrics
from tests.certificates import Authority
from tests.deploy.command_line import server_config
from tests.deploy.manifests import K8S, ROOT, SERVERS, built, container_of, label, one, pod_of, with_components

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
NAME = {"app.kubernetes.io/name": "opara-serve"}
overlays = pytest.mark.parametrize("overlay", [label(folder) for folder in SERVERS])


def component(tmp_path: Path, *names: str, overlay: str = "cpu") -> list[Resource]:
    return with_components(tmp_path, K8S / overlay, [K8S / "components" / name for name in names])


def server(overlay: str = "cpu") -> dict[str, Any]:
    return container_of(one(built(overlay), "Deployment"))


def mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


@overlays
def test_whatever_selects_pods_selects_the_deployments_and_no_others(overlay: str) -> None:
    resources = built(overlay)
    deployment = one(resources, "Deployment")
    assert deployment["spec"]["template"]["metadata"]["labels"] == NAME
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        *(service["spec"]["selector"] for service in resources if service["kind"] == "Service"),
        one(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(resources, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in pod_of(deployment)["topologySpreadConstraints"]),
    ]
    assert selectors == [NAME] * 7
    others = [one(built(f"plan/{overlay}"), "Job", "opara-plan")["spec"]["template"], *built("loader")]
    assert all(pod["metadata"]["labels"] != NAME for pod in others)


@overlays
def test_services_and_policies_name_ports_that_the_server_opens(overlay: str) -> None:
    resources = built(overlay)
    config = server_config(server(overlay)["args"])
    opened = {port["name"]: port["containerPort"] for port in server(overlay)["ports"]}
    assert opened == {"grpc": config.port, "metrics": config.metrics_port}
    services = {service["metadata"]["name"]: service["spec"] for service in resources if service["kind"] == "Service"}
    assert {name: spec.get("clusterIP") for name, spec in services.items()} == {
        "opara-serve": None,
        "opara-serve-pods": "None",
    }
    for port in chain.from_iterable(spec["ports"] for spec in services.values()):
        assert opened[port["targetPort"]] == port["port"]
    rules = one(resources, "NetworkPolicy")["spec"]["ingress"]
    assert [[port["port"] for port in rule["ports"]] for rule in rules] == [["grpc"], ["metrics"]]


def drains_in_time(container: dict[str, Any], pod: dict[str, Any]) -> None:
    config = server_config(container["args"])
    before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod["terminationGracePeriodSeconds"] > before_s + config.drain_delay_s + 2 * config.grace_s
    probe = container["readinessProbe"]
    noticed_s = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert config.drain_delay_s > noticed_s, "the pod would stop serving before anyone has noticed"


@overlays
def test_a_pod_may_take_as_long_to_end_as_its_drain(overlay: str) -> None:
    drains_in_time(server(overlay), pod_of(one(built(overlay), "Deployment")))
    assert server(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"] > 0


@overlays
def test_probes_ask_the_grpc_port_and_the_first_waits_for_a_search(overlay: str) -> None:
    container = server(overlay)
    config = server_config(container["args"])
    assert [container[probe]["grpc"]["port"] for probe in PROBES] == [config.port] * 3
    startup, liveness = container["startupProbe"], container["livenessProbe"]
    least_s = 900 if overlay == "cpu" else 3600
    most_s = startup["periodSeconds"] * startup["failureThreshold"]
    assert most_s >= least_s
    assert one(built(overlay), "Deployment")["spec"]["progressDeadlineSeconds"] > most_s
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60


@overlays
def test_torch_starts_as_many_threads_as_the_pod_asks_for_processors(overlay: str) -> None:
    (threads,) = [variable for variable in server(overlay)["env"] if variable["name"] == "OMP_NUM_THREADS"]
    assert threads["valueFrom"] == {"resourceFieldRef": {"resource": "requests.cpu"}}
    assert int(server(overlay)["resources"]["requests"]["cpu"]) >= 1


@overlays
def test_the_pod_can_write_only_where_something_is_mounted(overlay: str) -> None:
    pod = pod_of(one(built(overlay), "Deployment"))
    container = server(overlay)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    config = server_config(container["args"])
    mounted = mounts(container)
    assert mounted[str(config.models)]["readOnly"] is True
    assert "readOnly" not in mounted[str(config.cache_dir)]
    assert {mount["name"] for mount in mounted.values()} == {volume["name"] for volume in pod["volumes"]}
    claimed = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    assert claimed <= {claim["metadata"]["name"] for claim in built("storage")}


@pytest.mark.parametrize(
    ("overlay", "devices"), [("cpu", {}), ("gpu", {"nvidia.com/gpu": "1"}), ("mig", {"nvidia.com/mig-1g.10gb": "1"})]
)
def test_a_pod_gets_one_device_of_its_overlays_kind(overlay: str, devices: dict[str, str]) -> None:
    limits = server(overlay)["resources"]["limits"]
    assert {name: count for name, count in limits.items() if name.startswith("nvidia.com/")} == devices
    assert server(overlay)["image"] == ("opara-serve:cpu" if overlay == "cpu" else "opara-serve:cuda")


@overlays
def test_a_plan_is_made_as_it_is_looked_for(overlay: str, tmp_path: Path) -> None:
    """In the same image, with the same processors and device, by the same user, in the same folder of one claim."""
    serving = one(component(tmp_path, *(["plans"] if overlay == "cpu" else []), overlay=overlay), "Deployment")
    job = one(built(f"plan/{overlay}"), "Job", "opara-plan")
    server_container, planner = container_of(serving), container_of(job)
    for key in ("image", "resources", "volumeMounts", "securityContext"):
        assert planner[key] == server_container[key], key
    assert planner["env"] == server_container["env"]
    assert pod_of(job)["securityContext"] == pod_of(serving)["securityContext"]
    assert pod_of(job).get("tolerations") == pod_of(serving).get("tolerations")
    volumes = [{volume["name"]: volume for volume in pod_of(r)["volumes"]} for r in (job, serving)]
    assert volumes[0] == volumes[1]
    config = server_config(server_container["args"])
    (script,) = planner["args"]
    assert f"--cache-dir={config.cache_dir}" in script
    (app_dir,) = [argument for argument in server_container["args"] if argument.startswith("--app-dir=")]
    assert app_dir in script
    assert f"{config.models}/*/model.toml" in script


def test_what_scales_the_pods_asks_for_a_metric_of_theirs(tmp_path: Path) -> None:
    exported = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    exported |= {f"{family.name}{end}" for family in Metrics().registry.collect() for end in ("_sum", "_count")}
    hpa = one(component(tmp_path, "hpa"), "HorizontalPodAutoscaler")["spec"]
    keda = one(component(tmp_path, "keda"), "ScaledObject")["spec"]
    (metric,), (trigger,) = hpa["metrics"], keda["triggers"]
    (rule,) = yaml.safe_load((ROOT / "deploy" / "prometheus-adapter" / "values.yaml").read_text())["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    for query in (rule["metricsQuery"], rule["seriesQuery"], trigger["metadata"]["query"]):
        asked = set(re.findall(r"\bopara_\w+", query))
        assert asked
        assert asked <= exported
    # the two say the same
    milliseconds = float(metric["pods"]["target"]["averageValue"].removesuffix("m"))
    assert float(trigger["metadata"]["threshold"]) == milliseconds / 1000
    assert hpa["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (keda["minReplicaCount"], keda["maxReplicaCount"])
    assert hpa["scaleTargetRef"]["name"] == keda["scaleTargetRef"]["name"] == "opara-serve"


def test_the_service_monitor_finds_each_pod_once(tmp_path: Path) -> None:
    resources = component(tmp_path, "monitoring")
    spec = one(resources, "ServiceMonitor")["spec"]
    (endpoint,) = spec["endpoints"]
    services = [
        r for r in resources if r["kind"] == "Service" and r["metadata"]["labels"] == spec["selector"]["matchLabels"]
    ]
    ports = [port for service in services for port in service["spec"]["ports"] if port["name"] == endpoint["port"]]
    assert len(ports) == 1
    annotations = one(resources, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(server_config(server()["args"]).metrics_port)
    assert annotations["prometheus.io/path"] == endpoint["path"]


def test_the_operators_rules_are_prometheus_own() -> None:
    assert RESOURCE.read_text() == prometheus_rule(), "make prometheus-rule writes it"


def test_the_route_leads_from_the_gateway_to_the_service(tmp_path: Path) -> None:
    resources = component(tmp_path, "envoy-gateway")
    gateway = one(resources, "Gateway")["spec"]
    assert gateway["gatewayClassName"] == one(resources, "GatewayClass", "opara-envoy")["metadata"]["name"]
    route = one(resources, "GRPCRoute")["spec"]
    (parent,) = route["parentRefs"]
    assert parent == {"name": "opara-serve", "sectionName": gateway["listeners"][0]["name"]}
    (rule,) = route["rules"]
    (backend,) = rule["backendRefs"]
    assert backend["port"] in [port["port"] for port in one(resources, "Service", backend["name"])["spec"]["ports"]]
    protos = "\n".join(path.read_text() for path in (ROOT / "protos").rglob("*.proto"))
    for match in rule["matches"]:
        package, _, service = match["method"]["service"].rpartition(".")
        assert package == "grpc.health.v1" or (f"package {package};" in protos and f"service {service} {{" in protos)


@overlays
def test_the_secure_component_mounts_what_the_server_is_told_and_probes_with_tls(overlay: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    resources = component(tmp_path, "secure", overlay=overlay)
    pod = pod_of(one(resources, "Deployment"))
    (container,) = pod["containers"]
    config = server_config(container["args"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for file in (config.tls_certificate, config.tls_key, config.token_file):
        assert file is not None
        assert "secret" in volumes[mounts(container)[str(file.parent)]["name"]]
    for probe in PROBES:
        program, *arguments = container[probe]["exec"]["command"]
        assert program == "opara-client"
        assert f"--ca={config.tls_certificate}" in arguments
        here = [argument.replace(str(config.tls_certificate), str(authority.file)) for argument in arguments]
        assert main([*here, "--target=127.0.0.1:1", "--timeout=0.1"]) == 1  # wrong usage would be 2
        assert "grpc" not in container[probe]
        waits = {key: value for key, value in server(overlay)[probe].items() if key not in ("grpc", "timeoutSeconds")}
        assert waits.items() <= container[probe].items()
    drains_in_time(container, pod)
    assert one(resources, "Service")["spec"]["ports"][0]["appProtocol"] == "https"


def test_the_tracing_component_sends_spans_where_its_policy_lets_them(tmp_path: Path) -> None:
    resources = component(tmp_path, "tracing")
    container = container_of(one(resources, "Deployment"))
    assert server_config(container["args"]).tracing
    names = [variable["name"] for variable in container["env"]]
    values = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    assert names.index("POD_NAME") < names.index("OTEL_RESOURCE_ATTRIBUTES")  # or it is not put in
    to = urlsplit(values["OTEL_EXPORTER_OTLP_ENDPOINT"])
    collector, resolver = one(resources, "NetworkPolicy", "opara-serve-traces")["spec"]["egress"]
    assert [port["port"] for port in collector["ports"]] == [to.port]
    assert [port["port"] for port in resolver["ports"]] == [53, 53]
    assert to.hostname is not None
    (peer,) = collector["to"]
    namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert to.hostname.split(".")[1:] == [namespace, "svc"]
    for extra in re.findall(r'"\.\[([\w,]+)\]"', (ROOT / "Dockerfile").read_text()):
        assert "tracing" in extra.split(",")


def test_kserves_runtime_starts_the_same_server_on_what_it_mounts() -> None:
    runtime = one(built("kserve"), "ServingRuntime")["spec"]
    service = one(built("kserve"), "InferenceService", "opara-digits")["spec"]["predictor"]
    (container,) = runtime["containers"]
    config = server_config(container["args"])
    assert str(config.models) == "/mnt/models"  # where KServe's agent puts a model
    elsewhere = [argument.replace("/models", "/mnt/models") for argument in server()["args"]]
    assert container["args"] == elsewhere
    (port,) = container["ports"]
    assert (port["name"], port["containerPort"]) == ("h2c", config.port)
    for probe in PROBES:
        assert container[probe] == server()[probe]
    drains_in_time(container, service)
    model = service["model"]
    assert model["runtime"] == "opara-serve"
    assert model["protocolVersion"] in runtime["protocolVersions"]
    assert model["modelFormat"]["name"] in [known["name"] for known in runtime["supportedModelFormats"]]
    claims = [claim["metadata"]["name"] for claim in built("storage")]
    assert model["storageUri"].removeprefix("pvc://") in claims
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in runtime["volumes"]}
