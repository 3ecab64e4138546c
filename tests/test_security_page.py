"""What docs/security.md says of options, files and links is true."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from opara_client import security_options
from opara_client.security import Bearer
from opara_server.config import ServerConfig
from opara_server.rpc.access import OPEN

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_the_table_has_the_options_and_defaults_of_connections() -> None:
    rows = re.findall(r"^\| `--([\w-]+)` \| (\S+) \|", PAGE, re.MULTILINE)
    fields = {name.removesuffix("_s").replace("_", "-"): field for name, field in ServerConfig.model_fields.items()}
    assert {name: str(fields[name].default) for name, _ in rows} == dict(rows)
    assert {name for name in fields if name.startswith(("max-", "keepalive-"))} == {name for name, _ in rows}


def test_every_option_that_it_names_is_there() -> None:
    named = set(re.findall(r"--[a-z][\w-]+", PAGE)) - {"--health-cmd", "--cert"}
    server = {"--" + name.removesuffix("_s").replace("_", "-") for name in ServerConfig.model_fields}
    client = set(re.findall(r'"(--[\w-]+)"', Path(security_options.__file__).read_text())) | {"--target"}
    assert named <= server | client
    assert client <= named


@pytest.mark.skipif(shutil.which("openssl") is None, reason="runs openssl")
def test_the_certificate_and_the_token_to_try_it_with(tmp_path: Path) -> None:
    lines = re.findall(r"^openssl .*", PAGE, re.MULTILINE)
    for line in lines:
        subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    client = ssl.create_default_context(cafile=str(tmp_path / "server.pem"))
    for name in ("localhost", "127.0.0.1"):
        shaken_hands(server, client, name)
    assert Bearer(file=tmp_path / "tokens").metadata() is not None


def shaken_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while sides:
        for side in tuple(sides):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
                sides.remove(side)


def test_it_says_what_is_open() -> None:
    assert all(path.split("/")[1] in PAGE or path.split("/")[2] in PAGE for path in OPEN)


def test_links_lead_to_files() -> None:
    assert [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if not (ROOT / "docs" / link).exists()] == []
    assert [folder for folder in re.findall(r"deploy/\S+(?=\n)", PAGE) if not (ROOT / folder).exists()] == []
