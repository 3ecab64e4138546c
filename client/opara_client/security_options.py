"""The command line's options for TLS and bearer tokens."""

from __future__ import annotations

import argparse
from pathlib import Path

from opara_client.inputs import InputError
from opara_client.security import Bearer, Tls


def add_security_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("security", "files are in PEM; any of these but a token asks for TLS")
    group.add_argument("--tls", action="store_true", help="trust the authorities that gRPC knows")
    group.add_argument("--ca", type=Path, metavar="FILE", help="of the authorities to trust instead")
    group.add_argument(
        "--certificate", type=Path, metavar="FILE", help="the client's own, where the server asks for it"
    )
    group.add_argument("--key", type=Path, metavar="FILE", help="of that certificate")
    group.add_argument(
        "--server-name", default="", metavar="NAME", help="that the server's certificate is for; default: of --target"
    )
    group.add_argument(
        "--token", default="", metavar="TOKEN", help="bearer token; whoever may list processes can read it here"
    )
    group.add_argument("--token-file", type=Path, metavar="FILE", help="that holds the bearer token")


def security(args: argparse.Namespace) -> tuple[Tls | None, Bearer]:
    """What the options ask for; None for plain text. Raises InputError, also for files that cannot be used."""
    wanted = args.tls or args.ca or args.certificate or args.key or args.server_name
    try:
        tls = Tls(args.ca, args.certificate, args.key, args.server_name) if wanted else None
        if tls is not None:
            tls.credentials()
        return tls, Bearer(args.token, args.token_file)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(str(error)) from error
