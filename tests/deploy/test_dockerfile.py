"""The image holds what it needs, and starts the server the way the server wants to be started."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.image.dockerfile import Dockerfile, assignments, expand, parse
from opara_client.cli import main
from tests.deploy.command_line import server_config

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
HADOLINT = Path(sys.executable).with_name("hadolint")
targets = pytest.mark.parametrize("target", ["cpu", "cuda"])


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return parse(TEXT)


def listed(dockerfile: Dockerfile, target: str, instruction: str) -> list[str]:
    said = dockerfile.setting(target, instruction)
    words: list[str] = json.loads(said[said.index("[") :])
    return words


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, path], check=False, capture_output=True, text=True)


def test_hadolint_has_nothing_to_say() -> None:
    linted = lint(ROOT / "Dockerfile")
    assert (linted.returncode, linted.stdout) == (0, "")


def test_hadolint_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(TEXT.replace("WORKDIR /src", "RUN cd /src"))
    linted = lint(tmp_path / "Dockerfile")
    assert linted.returncode == 1
    assert "DL3003" in linted.stdout


def test_it_copies_only_what_exists_and_the_dockerignore_lets_through(dockerfile: Dockerfile) -> None:
    copied = {
        source
        for stage in dockerfile.stages
        for instruction in stage.instructions
        if instruction.name == "COPY" and not instruction.arguments.startswith("--from")
        for source in instruction.arguments.split()[:-1]
    }
    assert [path for path in copied if not (ROOT / path).exists()] == []
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore.index("*") < min(ignore.index(f"!{path}") for path in copied)
    assert copied == {line[1:] for line in ignore if line.startswith("!")}


@targets
def test_what_it_starts_are_valid_options_and_the_ports_it_exposes_are_theirs(
    dockerfile: Dockerfile, target: str
) -> None:
    assert listed(dockerfile, target, "ENTRYPOINT") == ["opara-server"]
    config = server_config(listed(dockerfile, target, "CMD"))
    assert dockerfile.setting(target, "EXPOSE").split() == [str(config.port), str(config.metrics_port)]
    assert dockerfile.setting(target, "VOLUME") == str(config.cache_dir)
    program, *arguments = listed(dockerfile, target, "HEALTHCHECK")
    assert (program, arguments[0]) == ("opara-client", "health")
    assert f"127.0.0.1:{config.port}" in arguments
    elsewhere = ["127.0.0.1:1" if ":" in argument else argument for argument in arguments]
    assert main([*elsewhere, "--timeout=0.1"]) == 1  # wrong usage would be 2


@targets
def test_it_runs_as_the_user_that_owns_the_cache_and_not_as_root(dockerfile: Dockerfile, target: str) -> None:
    user, group = dockerfile.setting(target, "USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    for name in ("base/deployment", "plan/base/job", "loader/loader"):
        manifest = (ROOT / "deploy" / "k8s" / f"{name}.yaml").read_text()
        assert re.findall(r"(?:runAsUser|fsGroup): (\d+)", manifest) == [user, group]


def test_without_a_target_it_is_for_cpus(dockerfile: Dockerfile) -> None:
    assert dockerfile.stages[-1].name == "cpu"


def test_the_versions_of_torch_are_the_ones_that_make_installs(dockerfile: Dockerfile) -> None:
    pinned = dict(re.findall(r"^TORCH_(CPU|GPU) := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for stage, version in (("build-cpu", pinned["CPU"]), ("build-cuda", pinned["GPU"])):
        first = next(i.arguments for i in dockerfile.stage(stage).instructions if i.name == "RUN")
        assert re.findall(r"torch==(\S+)", first) == [version]


@targets
def test_a_target_copies_what_its_own_stage_made(dockerfile: Dockerfile, target: str) -> None:
    assert {stage.name for stage in dockerfile.needed(target)} == {"build", f"build-{target}", "runtime", target}
    assert dockerfile.stage(target).last("COPY") == f"--from=build-{target} /opt/opara /opt/opara"


def test_the_index_of_torch_for_cpus_has_no_default(dockerfile: Dockerfile) -> None:
    assert dockerfile.stage("build-cpu").last("ARG") == "TORCH_INDEX_URL"
    assert set(dockerfile.arguments) == {"BASE_IMAGE"}


def test_only_the_target_that_fuses_operators_has_a_compiler(dockerfile: Dockerfile) -> None:
    """Triton compiles with gcc."""

    def installs(target: str) -> str:
        runs = [i.arguments for stage in dockerfile.lineage(target) for i in stage.instructions if i.name == "RUN"]
        return " ".join(runs)

    assert {"gcc", "libc6-dev"} <= set(installs("cuda").split())
    assert "apt-get" not in installs("cpu")


@targets
def test_what_compilers_keep_lies_on_the_volume(dockerfile: Dockerfile, target: str) -> None:
    environment: dict[str, str] = {"PATH": "/bin"}
    for stage in dockerfile.lineage(target):
        for instruction in stage.instructions:
            if instruction.name == "ENV":
                environment |= {k: expand(v, environment) for k, v in assignments(instruction.arguments).items()}
    volume = dockerfile.setting(target, "VOLUME")
    kept = [environment[name] for name in ("TRITON_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")]
    assert all(Path(folder).is_relative_to(volume) for folder in kept)
    assert environment["PATH"] == "/opt/opara/bin:/bin"


def test_an_instruction_that_the_rehearsal_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="ADD"):
        parse("FROM x AS y\nADD a b\n")


@pytest.mark.parametrize("suffix", ["org", "net", "io", "com", "dev"])
def test_no_image_names_a_host(suffix: str) -> None:
    texts = "\n".join((ROOT / name).read_text() for name in ("Dockerfile", "docker-compose.yml"))
    images = re.findall(r"^\s*(?:ARG BASE_IMAGE=|image: )(\S+)", texts, re.MULTILINE)
    assert images
    assert [image for image in images if f".{suffix}/" in image] == []


def test_ci_is_a_script_that_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
