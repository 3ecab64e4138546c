"""What our builder gives is what kubectl's own kustomize gives, item by item, lists in the same order."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import yaml

from deploy.manifests.build import Resource, build, identity
from tests.deploy.manifests import COMPONENTS, OVERLAYS, SERVERS, label, with_components

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def by_identity(resources: Iterable[Resource]) -> Mapping[tuple[str, str, str], Resource]:
    return {identity(resource): resource for resource in resources}


def kubectl(folder: Path) -> list[Resource]:
    command = ["kubectl", "kustomize", str(folder)]
    given = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(given))


@pytest.mark.parametrize("folder", OVERLAYS, ids=label)
def test_an_overlay(folder: Path) -> None:
    assert by_identity(build(folder)) == by_identity(kubectl(folder))


@pytest.mark.parametrize("overlay", SERVERS, ids=label)
def test_an_overlay_with_all_components(overlay: Path, tmp_path: Path) -> None:
    assert by_identity(with_components(tmp_path, overlay, COMPONENTS)) == by_identity(kubectl(tmp_path))
