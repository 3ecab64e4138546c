"""The server's own reading of its command line, without running anything."""

from __future__ import annotations

from collections.abc import Sequence

from typer.core import TyperGroup
from typer.main import get_command

from opara_server.commands import app
from opara_server.config import ServerConfig


def server_config(arguments: Sequence[str]) -> ServerConfig:
    """What ``opara-server serve ...`` is told by ``arguments``; raises on an unknown option or value."""
    command, *options = arguments
    assert command == "serve"
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    given = group.commands[command].make_context(command, list(options)).params
    return ServerConfig.of(**{name: given[name] for name in ServerConfig.model_fields if given[name] is not None})
