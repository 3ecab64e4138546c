"""Everything under deploy/k8s can be built, alone and combined, and is valid by the published schemas."""

from __future__ import annotations

import copy
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from deploy.manifests.build import Resource, build
from deploy.manifests.kustomization import FILE, read
from deploy.manifests.schemas import InvalidManifestError, validate
from tests.deploy.manifests import ALL, COMPONENTS, OVERLAYS, SERVERS, built, label, one, with_components


@pytest.mark.parametrize("folder", OVERLAYS, ids=label)
def test_an_overlay_is_valid(folder: Path) -> None:
    resources = build(folder)
    assert resources
    for resource in resources:
        validate(resource)


@pytest.mark.parametrize("component", COMPONENTS, ids=label)
@pytest.mark.parametrize("overlay", SERVERS, ids=label)
def test_a_component_fits_every_overlay(component: Path, overlay: Path, tmp_path: Path) -> None:
    resources = with_components(tmp_path, overlay, [component])
    for resource in resources:
        validate(resource)


@pytest.mark.parametrize("overlay", SERVERS, ids=label)
def test_all_components_fit_together(overlay: Path, tmp_path: Path) -> None:
    resources = with_components(tmp_path, overlay, COMPONENTS)
    deployment = one(resources, "Deployment")
    assert "replicas" not in deployment["spec"]
    for resource in resources:
        validate(resource)


def test_every_file_is_used_by_its_folder() -> None:
    for folder in ALL:
        wanted = read(folder)
        named = {*wanted.resources, *(patch.path for patch in wanted.patches)}
        assert {path.name for path in folder.glob("*.yaml")} - {FILE} == {n for n in named if n.endswith(".yaml")}


def damage(resource: Resource, way: str, value: Any) -> Resource:
    """A copy with something else at the end of a way like ``spec/rules/0/x``."""
    damaged = copy.deepcopy(resource)
    place: Any = damaged
    *before, last = [int(step) if step.isdigit() else step for step in way.split("/")]
    for step in before:
        place = place[step]
    place[last] = value
    return damaged


CONTAINER = "spec/template/spec/containers/0"
DAMAGE = {
    "an unknown key": ("cpu", "Deployment", "spec/template/spec/teminationGracePeriodSeconds", 1),
    "a probe's port that is text": ("cpu", "Deployment", f"{CONTAINER}/livenessProbe/grpc/port", "grpc"),
    "a policy without an end": ("cpu", "PodDisruptionBudget", "spec/maxUnavailable", [1]),
    "a rule as text": ("cpu", "NetworkPolicy", "spec/ingress/0/ports", "grpc"),
    "an unknown key of KServe's": ("kserve", "ServingRuntime", "spec/protocolVersion", "grpc-v2"),
    "another of KServe's": ("kserve", "InferenceService", "spec/predictor/model/storageUrl", "pvc://x"),
    "a container that is none": ("kserve", "ServingRuntime", "spec/containers/0", {"image": "x"}),
    "an unknown key of KEDA's": ("example", "ScaledObject", "spec/minReplicas", 1),
    "a threshold that is no text": ("example", "ScaledObject", "spec/triggers/0/metadata/threshold", 1),
    "an interval that is none": ("example", "ServiceMonitor", "spec/endpoints/0/interval", "15 seconds"),
    "a rule that is not one": ("example", "PrometheusRule", "spec/groups/0/rules/0", {"record": "x"}),
    "bad metadata of a custom resource": ("example", "ServiceMonitor", "metadata/label", {}),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_an_api_server_would_refuse_is_found(case: str) -> None:
    folder, kind, way, value = DAMAGE[case]
    (resource,) = [r for r in built(folder) if r["kind"] == kind and r["metadata"]["name"].startswith("opara-")]
    validate(resource)
    with pytest.raises(InvalidManifestError):
        validate(damage(resource, way, value))


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("spec/rules/0/matches/0/method/type", "Prefix"),
        ("spec/rules/0/backendRefs/0/port", 70000),
        ("spec/rules/0/timeouts", {"request": "1s"}),
    ],
)
def test_what_the_gateway_api_would_refuse_is_found(way: str, value: Any, tmp_path: Path) -> None:
    resources = with_components(tmp_path, SERVERS[0], [c for c in COMPONENTS if c.name == "envoy-gateway"])
    route = one(resources, "GRPCRoute")
    validate(route)
    with pytest.raises(InvalidManifestError):
        validate(damage(route, way, value))


def test_an_unknown_kind_is_an_error_and_not_skipped() -> None:
    with pytest.raises(InvalidManifestError, match="Couldn't find schema"):
        validate({"apiVersion": "example/v1", "kind": "Thing", "metadata": {"name": "x"}})


def test_no_name_of_a_host_is_that_of_a_registry() -> None:
    images = {
        container["image"].split(":")[0]
        for resource in chain.from_iterable(built(label(folder)) for folder in OVERLAYS)
        for container in _containers(resource)
    }
    assert images == {"opara-serve", "python"}


def _containers(resource: Resource) -> list[dict[str, Any]]:
    spec = resource.get("spec", {})
    containers: list[dict[str, Any]] = spec.get("template", {}).get("spec", spec).get("containers", [])
    return containers
