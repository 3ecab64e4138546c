"""What ``opara-server serve --help`` says of each option, what gRPC is told, and what ``plan`` says of a folder that is
no model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from opara_server.commands import app
from opara_server.config import ServerConfig, flag


def test_every_setting_has_an_option_and_what_it_does() -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    options = {option.name: option for option in group.commands["serve"].params}
    assert {*ServerConfig.model_fields, "app_dir"} == options.keys()
    assert [name for name, option in options.items() if not getattr(option, "help", "")] == []


def test_choices_and_defaults_are_shown() -> None:
    said = " ".join(CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "--log-format text|json" in said
    assert "--log-level debug|info|warning|error" in said
    for name, kind in (("port", "int"), ("grace", "float"), ("models", "path"), ("tls-key", "path"), ("host", "str")):
        assert f"--{name} <{kind}>" in said
    for name, default in (("--drain-delay", "0.0"), ("--grace", "30.0"), ("--port", "50051")):
        assert f"[default: {default}]" in said.partition(f"{name} ")[2].partition(" --")[0], name


def test_names_of_options_are_whole_on_a_small_terminal() -> None:
    said = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "80"}).output
    assert [name for name in ServerConfig.model_fields if f"  {flag(name)}" not in said] == []
    assert max(map(len, said.splitlines())) <= 80


def test_a_plan_is_of_one_model(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.toml").touch()
    result = CliRunner().invoke(app, ["plan", str(tmp_path)])
    said = f"opara-server: {tmp_path}: this is a folder of models; what is wanted is one of them: a, b\n"
    assert (result.exit_code, result.stderr) == (1, said)


@pytest.mark.parametrize("command", [["plan"], ["serve", "--models"]])
def test_a_folder_of_sources_must_be_there(command: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*command, str(tmp_path), f"--app-dir={tmp_path / 'none'}"])
    assert (result.exit_code, result.stderr) == (1, f"opara-server: --app-dir: {tmp_path / 'none'}: no such folder\n")


def test_a_plan_that_could_not_be_kept_is_not_searched_for(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    result = CliRunner().invoke(app, ["plan", str(tmp_path), f"--cache-dir={taken}"])
    assert (result.exit_code, result.stderr) == (1, f"opara-server: --cache-dir: {taken}: File exists\n")


_SERVE = """
import os, sys
from pathlib import Path
from opara_server import app, commands
def run(config, progress):
    print(os.environ.get("GRPC_EXPERIMENTS"))
    return 0
app.run = run
commands.serve(app_dir=Path(), models=Path(), busy_poll_us=int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("busy_poll_us", "set_before", "told"),
    [("0", None, "None"), ("100", None, "-event_engine_listener"), ("100", "tcp", "tcp")],
)
def test_a_thread_that_looks_for_calls_itself_is_not_woken_by_grpc_s(
    busy_poll_us: str, set_before: str | None, told: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    environment |= {"GRPC_EXPERIMENTS": set_before} if set_before else {}
    command = [sys.executable, "-c", _SERVE, busy_poll_us]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [told]
