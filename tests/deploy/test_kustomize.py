"""The builder does what kustomize does with the part of its language that it knows, and refuses the rest."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deploy.manifests.build import build
from deploy.manifests.kustomization import KustomizationError
from deploy.manifests.merge import merge
from deploy.manifests.schemas import Shape, shape_of

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "replicas": 2,
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "a",
                        "image": "web",
                        "args": ["x"],
                        "resources": {"limits": {"memory": "1Gi", "gpu": "1"}},
                    },
                    {"name": "b", "image": "other:1"},
                ],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}],
            }
        },
    },
}
CUSTOM = {
    "apiVersion": "x.example/v1",
    "kind": "Thing",
    "metadata": {"name": "t"},
    "spec": {"containers": [{"name": "a"}]},
}


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        documents = content if name.endswith("resources.yaml") else [content]
        path.write_text(yaml.safe_dump_all(documents))
    return folder


def kustomization(kind: str = "Kustomization", **keys: Any) -> dict[str, Any]:
    version = "v1alpha1" if kind == "Component" else "v1beta1"
    return {"apiVersion": f"kustomize.config.k8s.io/{version}", "kind": kind, **keys}


def patched(tmp_path: Path, patch: Any, *resources: Any, target: Mapping[str, str] | None = None) -> Any:
    entry = {"path": "patch.yaml"} | ({"target": dict(target)} if target else {})
    files = {
        "kustomization.yaml": kustomization(resources=["resources.yaml"], patches=[entry]),
        "resources.yaml": list(resources or [DEPLOYMENT]),
        "patch.yaml": patch,
    }
    return build(write(tmp_path, files))[0]


def web(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}


def test_a_strategic_merge_goes_by_kubernetes_own_keys_and_null_removes(tmp_path: Path) -> None:
    container = {"name": "a", "args": ["y"], "resources": {"limits": {"gpu": None, "mig": "1"}}}
    volume = {"name": "w", "emptyDir": None, "persistentVolumeClaim": {"claimName": "c"}}
    patch = web(replicas=None, template={"spec": {"containers": [container], "volumes": [volume, {"name": "new"}]}})
    spec = patched(tmp_path, patch)["spec"]
    assert "replicas" not in spec
    first, second = spec["template"]["spec"]["containers"]
    assert first == {
        "name": "a",
        "image": "web",
        "args": ["y"],  # a list without a key: replaced
        "resources": {"limits": {"memory": "1Gi", "mig": "1"}},
    }
    assert second == {"name": "b", "image": "other:1"}
    volumes = {volume["name"]: volume for volume in spec["template"]["spec"]["volumes"]}
    assert volumes["w"] == {"name": "w", "persistentVolumeClaim": {"claimName": "c"}}
    assert volumes.keys() == {"v", "w", "new"}


def test_lists_of_custom_resources_are_replaced_whole(tmp_path: Path) -> None:
    patch = {**CUSTOM, "spec": {"containers": [{"name": "z"}]}}
    assert patched(tmp_path, patch, CUSTOM)["spec"] == {"containers": [{"name": "z"}]}


def test_operations_are_applied_in_order(tmp_path: Path) -> None:
    operations = [
        {"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "y"},
        {"op": "replace", "path": "/spec/replicas", "value": 3},
        {"op": "remove", "path": "/spec/template/spec/volumes/0"},
    ]
    spec = patched(tmp_path, operations, target={"kind": "Deployment", "name": "web"})["spec"]
    assert spec["replicas"] == 3
    assert spec["template"]["spec"]["containers"][0]["args"] == ["x", "y"]
    assert [volume["name"] for volume in spec["template"]["spec"]["volumes"]] == ["w"]


def test_components_change_what_is_there_before_the_patches_and_images_of_who_names_them(tmp_path: Path) -> None:
    files = {
        "base/kustomization.yaml": kustomization(resources=["resources.yaml"], images=[{"name": "web", "newTag": "1"}]),
        "base/resources.yaml": [DEPLOYMENT],
        "more/kustomization.yaml": kustomization(
            "Component", resources=["resources.yaml"], patches=[{"path": "p.yaml"}]
        ),
        "more/resources.yaml": [CUSTOM],
        "more/p.yaml": web(replicas=7),
        "top/kustomization.yaml": kustomization(
            resources=["../base"],
            components=["../more"],
            patches=[{"path": "p.yaml"}],
            images=[{"name": "web", "newName": "host:5000/web"}],
        ),
        "top/p.yaml": {**CUSTOM, "spec": {"from": "top"}},
    }
    deployment, custom = build(write(tmp_path, files) / "top")
    assert deployment["spec"]["replicas"] == 7
    images = [container["image"] for container in deployment["spec"]["template"]["spec"]["containers"]]
    assert images == ["host:5000/web:1", "other:1"]
    assert custom["spec"] == {"containers": [{"name": "a"}], "from": "top"}


REFUSED: dict[str, Mapping[str, Any]] = {
    "what is not in the subset": {"kustomization.yaml": kustomization(resources=["resources.yaml"], namePrefix="x-")},
    "an unknown key of a patch": {
        "kustomization.yaml": kustomization(resources=["resources.yaml"], patches=[{"path": "p.yaml", "options": {}}]),
        "p.yaml": web(replicas=1),
    },
    "a file that is not there": {"kustomization.yaml": kustomization(resources=["missing.yaml"])},
    "a folder without a kustomization": {"kustomization.yaml": kustomization(resources=["empty"]), "empty/x.yaml": {}},
    "a file outside": {"kustomization.yaml": kustomization(resources=["../outside.yaml"])},
    "the same resource twice": {"kustomization.yaml": kustomization(resources=["resources.yaml", "resources.yaml"])},
    "a component among the resources": {
        "kustomization.yaml": kustomization(resources=["c"]),
        "c/kustomization.yaml": kustomization("Component"),
    },
    "a kustomization among the components": {
        "kustomization.yaml": kustomization(components=["c"]),
        "c/kustomization.yaml": kustomization(),
    },
    "itself": {"kustomization.yaml": kustomization(resources=["../" + "f"])},
    "a patch of nothing": {
        "kustomization.yaml": kustomization(resources=["resources.yaml"], patches=[{"path": "p.yaml"}]),
        "p.yaml": {**web(), "metadata": {"name": "webb"}},
    },
    "a patch of another version": {
        "kustomization.yaml": kustomization(resources=["resources.yaml"], patches=[{"path": "p.yaml"}]),
        "p.yaml": {**web(), "apiVersion": "apps/v1beta1"},
    },
    "operations for nobody": {
        "kustomization.yaml": kustomization(resources=["resources.yaml"], patches=[{"path": "p.yaml"}]),
        "p.yaml": [{"op": "remove", "path": "/spec"}],
    },
    "an operation on what is not there": {
        "kustomization.yaml": kustomization(
            resources=["resources.yaml"],
            patches=[{"path": "p.yaml", "target": {"kind": "Deployment", "name": "web"}}],
        ),
        "p.yaml": [{"op": "replace", "path": "/spec/paused", "value": True}],
    },
    "a directive": {
        "kustomization.yaml": kustomization(resources=["resources.yaml"], patches=[{"path": "p.yaml"}]),
        "p.yaml": web(template={"$patch": "delete"}),
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses(case: str, tmp_path: Path) -> None:
    write(tmp_path, {"outside.yaml": DEPLOYMENT})
    folder = write(tmp_path / "f", {"resources.yaml": [DEPLOYMENT], **REFUSED[case]})
    with pytest.raises(KustomizationError):
        build(folder)


def test_a_folder_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    said = f"^{tmp_path}/missing/kustomization.yaml: No such file or directory$"
    with pytest.raises(KustomizationError, match=said):
        build(tmp_path / "missing")


def test_a_component_is_not_built_alone(tmp_path: Path) -> None:
    with pytest.raises(KustomizationError, match="component"):
        build(write(tmp_path, {"kustomization.yaml": kustomization("Component")}))


keys = st.sampled_from("abc")
trees = st.recursive(
    st.integers() | st.none() | st.lists(st.integers(), max_size=2),
    lambda below: st.dictionaries(keys, below, max_size=3),
    max_leaves=12,
)
maps = st.dictionaries(keys, trees, max_size=3)


@given(maps, maps)
def test_a_patch_twice_is_the_patch_once_and_none_changes_nothing(
    target: dict[str, Any], patch: dict[str, Any]
) -> None:
    before = copy.deepcopy((target, patch))
    once = merge(target, patch, Shape({}))
    assert merge(once, patch, Shape({})) == once
    assert merge(target, {}, Shape({})) == target
    assert (target, patch) == before


@given(st.lists(keys, unique=True), st.lists(keys, unique=True))
def test_lists_merged_by_key_have_each_key_once(target: list[str], patch: list[str]) -> None:
    def containers(names: list[str], **more: str) -> dict[str, Any]:
        return {"spec": {"containers": [{"name": name, **more} for name in names]}}

    pod = {"apiVersion": "v1", "kind": "Pod", **containers(target, image="old")}
    merged = merge(pod, containers(patch, tag="new"), shape_of(pod))["spec"]["containers"]
    assert sorted(c["name"] for c in merged) == sorted({*target, *patch})
    assert {c["name"] for c in merged if "tag" in c} == set(patch)
    assert {c["name"] for c in merged if "image" in c} == set(target)
