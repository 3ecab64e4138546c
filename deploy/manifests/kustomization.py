"""The part of kustomize's language that deploy/k8s uses. What is not in it is refused, not ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

FILE = "kustomization.yaml"


class KustomizationError(Exception):
    """A kustomization that cannot be built; says which and why."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Target(_Strict):
    """Which resources a patch is for."""

    kind: str
    name: str


class Patch(_Strict):
    """A file: a list of operations (JSON patch, which needs ``target``), or a part of a resource (strategic merge)."""

    path: str
    target: Target | None = None


class Image(_Strict):
    """What a container's image ``name`` becomes; None leaves as it is."""

    name: str
    newName: str | None = None  # noqa: N815
    newTag: str | None = None  # noqa: N815


class Kustomization(_Strict):
    """A folder's kustomization.yaml. A component changes what the kustomization that names it has so far."""

    apiVersion: Literal["kustomize.config.k8s.io/v1beta1", "kustomize.config.k8s.io/v1alpha1"]  # noqa: N815
    kind: Literal["Kustomization", "Component"]
    resources: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    patches: tuple[Patch, ...] = ()
    images: tuple[Image, ...] = ()


def read(folder: Path) -> Kustomization:
    """Raises KustomizationError."""
    documents = read_all(folder / FILE)
    if len(documents) != 1:
        raise KustomizationError(f"{folder / FILE}: one document expected, {len(documents)} found")
    try:
        return Kustomization.model_validate(documents[0])
    except ValidationError as error:
        raise KustomizationError(f"{folder / FILE}: {error}") from error


def read_all(path: Path) -> list[Any]:
    """The documents of a YAML file. Raises KustomizationError."""
    try:
        return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]
    except OSError as error:
        raise KustomizationError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise KustomizationError(f"{path}: {error}") from error
