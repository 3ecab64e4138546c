"""What README and the runbook tell kubectl to do can be done: the folders, files and names are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from deploy.manifests.build import build
from tests.deploy.manifests import K8S, ROOT, SERVERS, built, label, one

PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/operations.md", "docs/security.md")}
LINES = {
    line.strip()
    for page in PAGES.values()
    for found in re.findall(r"^(kubectl .*)$|`(kubectl [^`]*)`", page, re.MULTILINE)
    for line in found
    if line
}


def words(verb: str) -> list[list[str]]:
    return [shlex.split(line)[2:] for line in sorted(LINES) if line.startswith(f"kubectl {verb} ")]


def test_folders_that_are_applied_and_deleted_are_overlays() -> None:
    folders = [Path(arguments[1]) for verb in ("apply", "delete") for arguments in words(verb) if arguments[0] == "-k"]
    assert len(folders) >= 5
    for folder in folders:
        assert build(ROOT / folder)


def test_what_is_copied_exists_and_goes_to_the_loader() -> None:
    copies = words("cp")
    pod = one(built("loader"), "Pod", "opara-loader")
    (mount,) = pod["spec"]["containers"][0]["volumeMounts"]
    assert len(copies) == 2
    for source, target in copies:
        assert (ROOT / source).exists()
        assert target.startswith(f"opara-loader:{mount['mountPath']}/")


@pytest.mark.parametrize("verb", ["wait", "rollout", "port-forward", "delete"])
def test_what_is_named_is_what_the_manifests_make(verb: str) -> None:
    made = {
        (resource["kind"].lower(), resource["metadata"]["name"])
        for folder in ("loader", "plan/gpu", *map(label, SERVERS))
        for resource in built(folder)
    }
    text = "\n".join(" ".join(arguments) for arguments in words(verb) if "-k" not in arguments)
    named = {(kind, name) for kind, name in re.findall(r"\b(pod|job|deployment|service)[/ ]([a-z-]+)", text)}
    assert named
    assert named <= made


def test_folders_and_files_of_ours_that_are_named_exist() -> None:
    for page in PAGES.values():
        for path in re.findall(r"`(deploy/[\w./-]+)`", page):
            assert (ROOT / path).exists(), path
        for name in re.findall(r"`(?:components|base|plan)/[\w.-]+`", page):
            assert (K8S / name.strip("`")).exists(), name


def test_every_component_is_in_the_table() -> None:
    table = set(re.findall(r"`([\w-]+)`", "".join(re.findall(r"^\| `.*?\|", PAGES["README.md"], re.MULTILINE))))
    assert {path.name for path in (K8S / "components").iterdir()} <= table
