"""What deploy/k8s gives, built as ``kubectl apply -k`` would."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.manifests.build import Resource, build
from deploy.manifests.kustomization import FILE, read

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy" / "k8s"
ALL = sorted(path.parent for path in K8S.rglob(FILE))
COMPONENTS = [folder for folder in ALL if read(folder).kind == "Component"]
OVERLAYS = [folder for folder in ALL if folder not in COMPONENTS]
SERVERS = [K8S / name for name in ("cpu", "gpu", "mig")]


def label(folder: Path) -> str:
    return str(folder.relative_to(K8S))


def with_components(folder: Path, overlay: Path, components: Sequence[Path]) -> list[Resource]:
    """An overlay with components, from a kustomization made in ``folder`` as a user's own would be."""
    (folder / FILE).write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [os.path.relpath(overlay, folder)],  # kustomize takes no absolute paths
                "components": [os.path.relpath(component, folder) for component in components],
            }
        )
    )
    return build(folder)


@cache
def built(name: str) -> tuple[Resource, ...]:
    return tuple(build(K8S / name))


def one(resources: Sequence[Resource], kind: str, name: str = "opara-serve") -> Resource:
    (found,) = [r for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, name)]
    return found


def pod_of(resource: Resource) -> dict[str, Any]:
    spec: dict[str, Any] = resource["spec"]["template"]["spec"]
    return spec


def container_of(resource: Resource) -> dict[str, Any]:
    (container,) = pod_of(resource)["containers"]
    assert isinstance(container, dict)
    return container
