"""What README and the runbook promise of pods that serve, and of whatever else runs in the cluster."""

from __future__ import annotations

from itertools import chain

import pytest

from tests.deploy.manifests import SERVERS, built, container_of, label, one, pod_of

overlays = pytest.mark.parametrize("overlay", [label(folder) for folder in SERVERS])
ROLLOUT = {  # where there is no GPU to spare, the old pod goes first
    "cpu": {"maxSurge": 1, "maxUnavailable": 0},
    "gpu": {"maxSurge": 0, "maxUnavailable": 1},
    "mig": {"maxSurge": 0, "maxUnavailable": 1},
}


@overlays
def test_an_upgrade_and_a_drain_of_nodes_leave_a_pod_that_serves(overlay: str) -> None:
    deployment = one(built(overlay), "Deployment")["spec"]
    assert deployment["replicas"] >= 2
    assert deployment["strategy"]["rollingUpdate"] == ROLLOUT[overlay]
    budget = one(built(overlay), "PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    spread = pod_of(one(built(overlay), "Deployment"))["topologySpreadConstraints"]
    assert {constraint["topologyKey"].rpartition("/")[2] for constraint in spread} == {"hostname", "zone"}
    assert all(constraint["whenUnsatisfiable"] == "ScheduleAnyway" for constraint in spread)


@overlays
def test_nothing_goes_out_and_calls_come_only_from_here_and_from_clients(overlay: str) -> None:
    policy = one(built(overlay), "NetworkPolicy")["spec"]
    assert (policy["policyTypes"], policy["egress"]) == (["Ingress", "Egress"], [])
    calls, scrapes = (rule["from"] for rule in policy["ingress"])
    assert calls == [{"podSelector": {}}, {"namespaceSelector": {"matchLabels": {"opara-serve/client": "true"}}}]
    assert scrapes == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


PODS = {label(folder): "Deployment" for folder in SERVERS} | {f"plan/{label(folder)}": "Job" for folder in SERVERS}


@pytest.mark.parametrize("folder", [*PODS, "loader"])
def test_a_pod_can_do_no_more_than_it_must(folder: str) -> None:
    if folder in PODS:
        resource = one(built(folder), PODS[folder], "opara-plan" if folder.startswith("plan/") else "opara-serve")
        pod, container = pod_of(resource), container_of(resource)
    else:
        pod = one(built(folder), "Pod", "opara-loader")["spec"]
        (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    sources = chain.from_iterable(volume.keys() - {"name"} for volume in pod["volumes"])
    assert set(sources) <= {"persistentVolumeClaim", "emptyDir"}
