"""The opara-server command. What it needs from outside is imported when it runs: its absence is one clear line."""

from __future__ import annotations

import sys

_EXTRA = (
    "typer",
    "rich",
    "pydantic",
    "torch",
    "safetensors",
    "uvloop",
    "prometheus_client",
    "grpc_health",
    "grpc_reflection",
)


def main() -> None:
    try:
        from opara_server.commands import app  # noqa: PLC0415 - see above

        app(prog_name="opara-server")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        sys.exit("opara-server needs: pip install 'opara-serve[server]'")


if __name__ == "__main__":
    main()
