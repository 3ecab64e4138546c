"""The clients that others have made, with TLS, certificates of their own and bearer tokens, on either transport."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.rpc.served import serve

ROOT = Path(__file__).parents[2]
KSERVE = ROOT / ".opara-cache" / "peers" / "kserve" / "bin" / "python"  # as ``make bench-peers`` installs it


@pytest.fixture
async def secured(models: Path, transport: str, authority: Authority, tmp_path: Path) -> AsyncIterator[list[str]]:
    """What a client is told of a server that asks for everything: its address, files and a token."""
    own, client = authority.issue("server"), authority.issue("client", "client.test")
    tokens, admin_tokens = tmp_path / "tokens", tmp_path / "admin-tokens"
    tokens.write_text("somebody\n")
    admin_tokens.write_text("administrator\n")
    async with serve(
        models,
        credentials=authority.trusted(client),
        transport=transport,
        admin=True,
        tls_certificate=own.certificate,
        tls_key=own.key,
        tls_client_ca=authority.file,
        token_file=tokens,
        admin_token_file=admin_tokens,
    ) as served:
        yield [served.app.grpc_address, str(authority.file), str(client.certificate), str(client.key), "somebody"]


async def session(*command: str) -> None:
    running = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told, _ = await asyncio.wait_for(running.communicate(), 280)
    assert running.returncode == 0, told.decode()
    assert told.endswith(b"all as it should be\n")


async def test_tritonclient(secured: list[str]) -> None:
    await session(sys.executable, "-m", "tests.rpc.secured_tritonclient", *secured, "administrator")


@pytest.mark.skipif(not KSERVE.exists(), reason="needs KServe in an environment of its own: make bench-peers")
async def test_kserve(secured: list[str]) -> None:
    await session(str(KSERVE), str(ROOT / "tests" / "rpc" / "secured_kserve.py"), *secured)
