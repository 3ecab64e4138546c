"""Schemas: Kubernetes' own from the package kubernetes-validate, those of custom resources from ``crds``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes: what the manifests need, and what they are known to be valid for
CRDS = Path(__file__).with_name("crds")
Schema = Mapping[str, Any]


class InvalidManifestError(Exception):
    """A resource that an API server would refuse, or of which it would drop something."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Where we are in the schema of a kind; empty where none is known. ``merge_key``: of a list's items."""

    schema: Schema
    merge_key: str | None = None

    def of(self, key: str) -> Shape:
        found = _resolved(self.schema).get("properties", {}).get(key, {})
        merged = "merge" in found.get("x-kubernetes-patch-strategy", "")
        return Shape(found, found.get("x-kubernetes-patch-merge-key") if merged else None)

    def items(self) -> Shape:
        return Shape(_resolved(self.schema).get("items", {}))


def shape_of(resource: Mapping[str, Any]) -> Shape:
    """Empty for custom resources."""
    group, _, version = resource["apiVersion"].rpartition("/")
    known = {"group": group, "version": version, "kind": resource["kind"]}
    return Shape(next((s for s in _definitions().values() if known in s.get(_KIND, ())), {}))


def validate(resource: Mapping[str, Any]) -> None:
    """Against the schema of its kind, unknown keys refused. Raises InvalidManifestError."""
    where = f"{resource['kind']} {resource['metadata'].get('name')}"
    try:
        custom = _custom().get((resource["apiVersion"], resource["kind"]))
        if custom:
            jsonschema.Draft202012Validator(custom).validate(resource)
            # of its metadata the custom schema says nothing
            resource = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": resource["metadata"]}
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(resource, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        raise InvalidManifestError(f"{where}: {error.message}") from error
    except jsonschema.ValidationError as error:
        at = "/".join(map(str, error.absolute_path))
        raise InvalidManifestError(f"{where}: {at}: {error.message}") from error


_KIND = "x-kubernetes-group-version-kind"


@cache
def _definitions() -> Mapping[str, Schema]:
    folder = f"kubernetes-json-schema/v{NEWEST}.0-local-strict"
    loaded: dict[str, dict[str, Schema]] = json.loads(
        (files("kubernetes_validate") / folder / "_definitions.json").read_text()
    )
    return loaded["$defs"]


def _resolved(schema: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    return _definitions()[schema["$ref"].rpartition("/")[2]]


@cache
def _custom() -> Mapping[tuple[str, str], Schema]:
    """By API version and kind, closed: Kubernetes drops keys that a structural schema does not name."""
    found = {}
    for path in CRDS.glob("*.json"):
        schema = json.loads(path.read_text())
        for kind in _kinds(schema):
            found[kind] = _closed(schema)
    return found


def _kinds(schema: Schema) -> Iterator[tuple[str, str]]:
    for kind in schema[_KIND]:
        yield f"{kind['group']}/{kind['version']}", kind["kind"]


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema or "allOf" in schema:
        return {"type": "object"}  # the metadata
    if schema.get("x-kubernetes-int-or-string"):
        return {key: value for key, value in schema.items() if key != "type"} | {"type": ["integer", "string"]}
    closed = {key: _closed(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not is_open:
        closed["additionalProperties"] = False
    return closed
