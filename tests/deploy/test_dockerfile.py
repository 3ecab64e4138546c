"""The image holds what it needs, and starts the server the way the server wants to be started."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.command_line import server_config

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments), comments dropped and continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1].strip()) for line in joined.splitlines() if line]


def argument(instruction: str) -> str:
    """The arguments of the last such instruction."""
    return [rest for name, rest in instructions() if name == instruction][-1]


def test_it_copies_only_what_exists_and_the_dockerignore_lets_through() -> None:
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert [path for path in copied if not (ROOT / path).exists()] == []
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore.index("*") < min(ignore.index(f"!{path}") for path in copied)
    assert copied == {line[1:] for line in ignore if line.startswith("!")}


def test_what_it_starts_are_valid_options_and_the_ports_it_exposes_are_theirs() -> None:
    assert json.loads(argument("ENTRYPOINT")) == ["opara-server"]
    config = server_config(json.loads(argument("CMD")))
    assert argument("EXPOSE").split() == [str(config.port), str(config.metrics_port)]
    assert f"127.0.0.1:{config.port}" in argument("HEALTHCHECK")
    assert argument("VOLUME") == str(config.cache_dir)


def test_it_runs_as_the_user_that_owns_the_cache_and_not_as_root() -> None:
    user, group = argument("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    manifest = (ROOT / "deploy" / "k8s" / "base" / "deployment.yaml").read_text()
    assert re.findall(r"(?:runAsUser|fsGroup): (\d+)", manifest) == [user, group]


def test_the_versions_of_torch_are_the_ones_that_make_installs() -> None:
    makefile = dict(re.findall(r"^TORCH_(CPU|GPU) := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pinned = [rest.removeprefix("PINNED_TORCH=") for _, rest in instructions() if rest.startswith("PINNED_TORCH=")]
    stages = [rest.split(" AS ")[-1] for name, rest in instructions() if name == "FROM"]
    assert dict(zip(stages, pinned, strict=False)) == {"cpu": makefile["CPU"], "cuda": makefile["GPU"]}
    assert ("FROM", "${KIND} AS build") in instructions()
    assert ("ARG", "KIND=cpu") in instructions()


def test_operators_can_be_fused_in_it_wherever_the_root_is_read_only() -> None:
    """Triton compiles with gcc, and keeps what it made below its home and its cache."""
    last = [name for name, _ in instructions()].count("FROM") - 1
    begin = [at for at, (name, _) in enumerate(instructions()) if name == "FROM"][last]
    final = instructions()[begin:]
    assert any(name == "RUN" and {"gcc", "libc6-dev"} <= set(rest.split()) for name, rest in final)
    folders = dict(re.findall(r"(\w+)=(/tmp\S*)", " ".join(rest for name, rest in final if name == "ENV")))
    assert folders.keys() == {"TRITON_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
    manifest = (ROOT / "deploy" / "k8s" / "base" / "deployment.yaml").read_text()
    assert "mountPath: /tmp" in manifest
    assert 'tmpfs: ["/tmp:exec,' in (ROOT / "docker-compose.yml").read_text()


@pytest.mark.parametrize("suffix", ["org", "net", "io", "com", "dev"])
def test_no_image_names_a_host(suffix: str) -> None:
    images = re.findall(r"^\s*(?:ARG BASE_IMAGE=|image: )(\S+)", _texts(), re.MULTILINE)
    assert images
    assert [image for image in images if f".{suffix}/" in image] == []


def _texts() -> str:
    return "\n".join((ROOT / name).read_text() for name in ("Dockerfile", "docker-compose.yml"))


def test_ci_is_a_script_that_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
