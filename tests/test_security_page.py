"""What docs/security.md says of options, files and links is true."""

from __future__ import annotations

import re
from pathlib import Path

from opara_client import security_options
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


def test_it_says_what_is_open() -> None:
    assert all(path.split("/")[1] in PAGE or path.split("/")[2] in PAGE for path in OPEN)


def test_links_lead_to_files() -> None:
    assert [link for link in re.findall(r"\]\(([^)]+)\)", PAGE) if not (ROOT / "docs" / link).exists()] == []
    assert [folder for folder in re.findall(r"deploy/\S+(?=\n)", PAGE) if not (ROOT / folder).exists()] == []
