"""What ``kubectl apply -k FOLDER`` would apply, in kustomize's order: resources, components, patches, images."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonpatch
import jsonpointer

from deploy.manifests.kustomization import FILE, Image, KustomizationError, Patch, read, read_all
from deploy.manifests.merge import merge
from deploy.manifests.schemas import shape_of

Resource = dict[str, Any]


def build(folder: Path) -> list[Resource]:
    """Raises KustomizationError where kustomize would fail, or something is used that this does not know."""
    if read(folder).kind != "Kustomization":
        raise KustomizationError(f"{folder}: a component is built as a part of something only")
    return _built(folder, [])


def _built(folder: Path, resources: list[Resource]) -> list[Resource]:
    """``resources`` and those of the folder, changed as it says."""
    wanted = read(folder)
    for name in wanted.resources:
        resources = [*resources, *_named(folder, name)]
    ids = [identity(resource) for resource in resources]
    if len(set(ids)) < len(ids):
        raise KustomizationError(f"{folder}: a resource is there twice: {max(ids, key=ids.count)}")
    for name in wanted.components:
        component = _folder(folder, name)
        if read(component).kind != "Component":
            raise KustomizationError(f"{component}: not a component")
        resources = _built(component, resources)
    for patch in wanted.patches:
        resources = _patched(resources, patch, folder)
    return [_with_images(resource, wanted.images) for resource in resources]


def identity(resource: Mapping[str, Any]) -> tuple[str, str, str]:
    """API version, kind and name. (Nothing of ours names a namespace: whoever applies it does.)"""
    return resource["apiVersion"], resource["kind"], resource["metadata"]["name"]


def _named(folder: Path, name: str) -> list[Resource]:
    if (folder / name).is_dir():
        other = _folder(folder, name)
        return build(other)
    return read_all(_file(folder, name))


def _folder(folder: Path, name: str) -> Path:
    other = (folder / name).resolve()
    if not (other / FILE).is_file():
        raise KustomizationError(f"{folder}: {name} is no folder with a {FILE}")
    if folder.resolve().is_relative_to(other):
        raise KustomizationError(f"{folder}: {name} would be built of itself")
    return other


def _file(folder: Path, name: str) -> Path:
    """kustomize reads no file outside of the folder that names it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise KustomizationError(f"{folder}: {name} is outside of the folder")
    return path


def _patched(resources: Iterable[Resource], patch: Patch, folder: Path) -> list[Resource]:
    path = _file(folder, patch.path)
    documents = read_all(path)
    if len(documents) != 1:
        raise KustomizationError(f"{path}: one patch expected, {len(documents)} found")
    (change,) = documents
    if isinstance(change, list) and patch.target is None:
        raise KustomizationError(f"{path}: operations need a target")
    wanted = (patch.target.kind, patch.target.name) if patch.target else identity(change)[1:]
    resources = list(resources)
    targets = [at for at, resource in enumerate(resources) if identity(resource)[1:] == wanted]
    if len(targets) != 1:
        raise KustomizationError(f"{path}: {len(targets)} resources are called {' '.join(wanted)}")
    (at,) = targets
    try:
        resources[at] = _changed(resources[at], change)
    except (ValueError, KeyError, jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as error:
        raise KustomizationError(f"{path}: {error!r}") from error
    return resources


def _changed(resource: Resource, change: Any) -> Resource:
    if isinstance(change, list):
        operated: Resource = jsonpatch.JsonPatch(change).apply(resource)
        return operated
    if change["apiVersion"] != resource["apiVersion"]:
        raise ValueError(f"{change['apiVersion']} is not {resource['apiVersion']}")
    merged: Resource = merge(resource, change, shape_of(resource))
    return merged


def _with_images(resource: Resource, images: Iterable[Image]) -> Resource:
    resource = copy.deepcopy(resource)
    for container in _containers(resource):
        for image in images:
            name, colon, tag = container["image"].partition(":")
            if name == image.name:
                tag = image.newTag or tag
                container["image"] = (image.newName or name) + (f":{tag}" if colon or tag else "")
    return resource


def _containers(part: Any) -> list[dict[str, Any]]:
    """Of a resource of whatever kind, wherever they are."""
    if isinstance(part, list):
        return [found for item in part for found in _containers(item)]
    if not isinstance(part, dict):
        return []
    found = [found for value in part.values() for found in _containers(value)]
    for key in ("containers", "initContainers"):
        if isinstance(part.get(key), list):
            found += [container for container in part[key] if "image" in container]
    return found
