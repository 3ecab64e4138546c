"""The README's commands, snippets and tables are true."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from examples.serving import Server, running_server
from opara_client import cli as client_cli
from opara_server.commands import app
from opara_server.engine.policies import POLICIES
from opara_server.model_config import BatchingConfig, ModelConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
UNREACHABLE = "127.0.0.1:1"


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """The arguments of every shell command of the README that runs ``program``."""
    lines = [shlex.split(line, comments=True) for snippet in snippets("bash") for line in snippet.splitlines()]
    return [words[1:] for words in lines if words and words[0] == program]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_shell_command_is_of_a_program_that_is_tested_here() -> None:
    programs = {line.split()[0] for snippet in snippets("bash") for line in snippet.splitlines()}
    assert programs == {".", "make", "opara-server", "opara-client", "docker", "kubectl"}
    assert commands(".") == [[".venv/bin/activate"]]  # which `make` makes


@pytest.mark.parametrize("arguments", commands("make"))
def test_make_has_the_target(arguments: list[str]) -> None:
    assert set(arguments) <= targets()


def test_demo_and_test_are_there_and_every_target_has_a_line_of_help() -> None:
    assert commands("make")[:2] == [["demo"], ["test"]]
    helped = set(re.findall(r"^([a-z-]+):.*## \S", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets() == helped


@pytest.mark.parametrize("arguments", commands("opara-server"))
def test_the_server_understands(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name, *options = arguments
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    given = group.commands[name].make_context(name, options).params
    paths = [Path(value) for key, value in given.items() if key in {"models", "model_dir"}]
    assert paths
    assert all(path.is_dir() for path in paths)


@pytest.mark.parametrize("arguments", commands("opara-client"))
def test_the_client_understands(arguments: list[str]) -> None:
    # Wrong usage would end with 2, before anything is asked.
    assert client_cli.main([*arguments, "--target", UNREACHABLE, "--timeout", "0.1"]) == 1


def test_what_docker_builds_is_there() -> None:
    """What kubectl is told, tests/deploy has."""
    composed, built, pushed = commands("docker")
    assert composed == ["compose", "up", "--build"]
    assert (ROOT / "docker-compose.yml").is_file()
    assert f"AS {built[built.index('--target') + 1]}\n" in (ROOT / "Dockerfile").read_text()
    assert pushed == ["push", built[built.index("-t") + 1]]


def test_the_model_file_is_valid() -> None:
    (snippet,) = snippets("toml")
    config = ModelConfig.model_validate(tomllib.loads(snippet))
    example = ModelConfig.load(ROOT / "examples" / "models" / "digits" / "model.toml")
    assert (config.source, config.inputs, config.batch_sizes) == (example.source, example.inputs, example.batch_sizes)


def test_every_key_of_a_model_file_is_explained() -> None:
    (snippet,) = snippets("toml")
    explained = re.findall(r"^\| `(?:\[batching\]` `)?(\w+)` \| [^|]+ \| [^|]+ \|$", README, re.MULTILINE)
    assert {*tomllib.loads(snippet), *explained} >= {*ModelConfig.model_fields, *BatchingConfig.model_fields}


def test_the_library_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = [snippet for snippet in snippets("python") if "optimize" in snippet]
    exec(compile(snippet, "README.md", "exec"), {})
    assert re.fullmatch(r"tensor\(\[(\d, ){4}\d\]\)\n", capsys.readouterr().out)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


def test_the_client_snippet_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = [snippet for snippet in snippets("python") if "OparaClient" in snippet]
    assert "127.0.0.1:50051" in snippet
    exec(compile(snippet.replace("127.0.0.1:50051", server.grpc), "README.md", "exec"), {})
    assert re.match(r"\[\d \d \d\] \[0\.", capsys.readouterr().out)


def test_the_snippet_of_another_client_runs(server: Server) -> None:
    (snippet,) = [snippet for snippet in snippets("python") if "tritonclient" in snippet]
    code = snippet.replace("127.0.0.1:50051", server.grpc)
    # A process of its own: these stubs stay in the common descriptor pool.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=280)
    assert re.fullmatch(r"\[\d \d \d\]\n", done.stdout), done.stderr


@pytest.mark.parametrize("arguments", commands("opara-client"))
def test_the_client_commands_run(arguments: list[str], server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert client_cli.main([*arguments, "--target", server.grpc]) == 0
    assert capsys.readouterr().out


def test_the_table_of_policies_is_complete() -> None:
    named = re.findall(r"^\| `(\w+)` \| ", README, re.MULTILINE)
    assert list(POLICIES) == [name for name in named if name in POLICIES]


def test_links_lead_to_files() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert "docs/idea.svg" in links
    assert [link for link in links if not (ROOT / link).exists()] == []
