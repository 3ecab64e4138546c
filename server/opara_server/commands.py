"""The subcommands of opara-server. torch is imported by those that need it, when they run."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from dataclasses import replace
from inspect import Parameter, Signature
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Literal, NoReturn, get_args, get_origin

import typer
from rich.console import Console

from opara_server.config import ServerConfig, flag
from opara_server.model_config import MODEL_FILE
from opara_server.observe import logs
from opara_server.report import print_plan, progress_on
from opara_server.rpc.busy_poll import NO_THREADS
from opara_server.settings import ConfigError
from opara_server.version import VERSION

log = logging.getLogger(__name__)
# Plain help: rich's cuts the names of long options off on 80 columns.
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
AppDir = Annotated[Path, typer.Option(help="Folder put first on Python's path, where 'python:' sources are found.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(VERSION)
        raise typer.Exit


@app.callback()
def opara_server(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Serve PyTorch models whose operators run in parallel."""


def _metavar(kind: object) -> str | None:
    """The values are text for typer, and ServerConfig's to read."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if Path in get_args(kind):
        return "<path>"
    return {int: "<int>", float: "<float>", Path: "<path>"}.get(kind)  # type: ignore[call-overload,no-any-return]


def _options_of_config() -> list[Parameter]:
    """One option per field of ServerConfig, which also checks the values; what is not given is None."""
    parameters = []
    for name, field in ServerConfig.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        is_switch = field.annotation is bool
        shown = "" if is_switch or default is None else f"  [default: {default}]"
        option = typer.Option(
            flag(name),
            help=f"{field.description}{shown}",
            show_default=False,
            metavar=_metavar(field.annotation),
        )
        kind: object = Annotated[bool if is_switch else str, option]
        missing = Parameter.empty if field.is_required() else None
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=missing, annotation=kind))
    return parameters


def serve(*, app_dir: Path, **options: object) -> None:
    """Serve every model in a folder over gRPC, until SIGTERM."""
    _import_from(app_dir)
    try:
        config = ServerConfig.of(**{name: value for name, value in options.items() if value is not None})
    except ConfigError as error:
        _fail(str(error))
    logs.set_up(config.log_format, config.log_level)
    logs.take_over()
    for name, value in _of_grpc(config).items():
        os.environ.setdefault(name, value)
    log.info("starting", extra={"version": VERSION, "models": str(config.models), "workers": config.workers})
    if config.workers:
        from opara_server.workers.supervisor import run as supervise  # noqa: PLC0415 - imports gRPC

        with progress_on(Console(stderr=True)) as progress:
            sys.exit(supervise(config, progress))
    gc.disable()  # what is imported stays: to look for garbage in it takes half a second
    from opara_server.app import run  # noqa: PLC0415 - imports torch

    gc.freeze()  # nor is it looked at later, when requests would wait
    gc.enable()
    with progress_on(Console(stderr=True)) as progress:
        status = run(config, progress)
    sys.exit(status)


def _of_grpc(config: ServerConfig) -> dict[str, str]:
    """What gRPC reads in the environment as it is imported."""
    quiet = {"GRPC_VERBOSITY": "NONE"} if config.log_format == "json" else {}  # it writes lines of a form of its own
    return quiet | (NO_THREADS if config.busy_poll_us else {})


_APP_DIR = Parameter("app_dir", Parameter.KEYWORD_ONLY, default=Path(), annotation=AppDir)
_parameters = [*_options_of_config(), _APP_DIR]
serve.__signature__ = Signature(_parameters)  # type: ignore[attr-defined]
serve.__annotations__ = {parameter.name: parameter.annotation for parameter in _parameters}
app.command()(serve)


@app.command()
def plan(
    model_dir: Annotated[Path, typer.Argument(help="Folder of one model, with its model.toml.")],
    policy: Annotated[str | None, typer.Option(help="Instead of what model.toml says.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Folder where the plan is kept, for 'serve' with the same one to find.")
    ] = None,
    app_dir: AppDir = Path(),
) -> None:
    """Compile a model without serving it, and print what was measured."""
    _import_from(app_dir)
    if cache_dir:
        _can_be_written(cache_dir)
    from opara_server.engine.build import compile_model  # noqa: PLC0415 - imports torch
    from opara_server.engine.errors import EngineError  # noqa: PLC0415
    from opara_server.serving.repository import Entry, RepositoryError  # noqa: PLC0415

    folder = model_dir.resolve()
    if not (folder / MODEL_FILE).exists() and (models := sorted(f.parent.name for f in folder.glob(f"*/{MODEL_FILE}"))):
        _fail(f"{model_dir}: this is a folder of models; what is wanted is one of them: {', '.join(models)}")
    entry = Entry(folder.name, folder)
    try:
        ServerConfig.of(models=folder.parent, policy=policy)  # checks the name
        config = entry.config()
        options = replace(config.with_policy(policy).build_options(cache_dir), tune_behind=False)
        inputs = [i.spec for i in config.inputs]
        with progress_on(Console(stderr=True)) as progress:
            compiled = compile_model(entry.name, entry.module(config), inputs, config.device, options, progress)
    except (ConfigError, RepositoryError, EngineError) as error:
        _fail(str(error))
    compiled.close()
    if as_json:
        print(json.dumps(compiled.plan.to_json(), indent=2))
    else:
        print_plan(Console(), compiled.plan)


def _import_from(app_dir: Path) -> None:
    if not app_dir.is_dir():
        _fail(f"--app-dir: {app_dir}: no such folder")
    sys.path.insert(0, str(app_dir.resolve()))


def _can_be_written(cache_dir: Path) -> None:
    """Ends the command otherwise: whoever names a folder wants the plan in it, after a search that may take minutes."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=cache_dir):
            pass
    except OSError as error:
        _fail(f"--cache-dir: {cache_dir}: {error.strerror}")


def _fail(message: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"opara-server: {message}")
    raise typer.Exit(1)
