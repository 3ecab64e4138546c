"""A server process with TLS, certificates of clients and bearer tokens, and our own clients; and one set up wrongly."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opara_client import AsyncOparaClient, InferRequest, OparaClient, Tls, Unauthenticated
from opara_client.cli import main
from tests.certificates import Authority, Issued
from tests.e2e.server_process import PATIENCE_S, run, running

X = np.array([[1, 2, -3, 4]], np.float32)
Y = np.maximum(X, 0) + 1


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "authority").mkdir()
    return Authority(tmp_path / "authority")


@pytest.fixture
def own(authority: Authority) -> Issued:
    return authority.issue("server")


@pytest.mark.parametrize("served_by", ["--transport=cq", "--transport=aio", "--workers=2"])
def test_our_clients_with_all_of_it(
    small: Path, authority: Authority, own: Issued, served_by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client_files = authority.issue("client", "client.test")
    tls = Tls(authority.file, client_files.certificate, client_files.key)
    token = small.parent / "token"
    token.write_text("a-token\n")
    options = (f"--tls-certificate={own.certificate}", f"--tls-key={own.key}", f"--tls-client-ca={authority.file}")
    with running(small, *options, f"--token-file={token}", served_by) as server:
        with OparaClient(server.grpc, tls=tls, token="a-token", timeout=PATIENCE_S) as client:
            np.testing.assert_array_equal(client.infer("small", {"x": X})["output"], Y)
            ((_, answer),) = client.infer_stream([InferRequest("small", {"x": X})])
            assert not isinstance(answer, Exception)
        with OparaClient(server.grpc, tls=tls, timeout=PATIENCE_S) as client:
            client.wait_ready(PATIENCE_S)
            with pytest.raises(Unauthenticated, match="no bearer token"):
                client.infer("small", {"x": X})
            with pytest.raises(Unauthenticated, match="no bearer token"):
                list(client.infer_stream([InferRequest("small", {"x": X})]))
        asyncio.run(awaited(server.grpc, tls, token))
        files = [f"--ca={tls.ca}", f"--certificate={tls.certificate}", f"--key={tls.key}"]
        said = [f"--target={server.grpc}", *files, f"--token-file={token}"]
        assert main(["models", *said]) == 0
        assert "small" in capsys.readouterr().out
        for protocol in ("opara", "oip"):
            load = ["--duration=0.5", "--warm-up=0", f"--protocol={protocol}", f"--timeout={PATIENCE_S}", "--check"]
            status, report = 1, dict[str, Any](sent=0)
            while status and not report["sent"]:  # again, if it was paused for all of that time
                status = main(["perf", "small", *said, *load, "--json"])
                (report,) = json.loads(capsys.readouterr().out)["runs"]
            assert status == 0, report["wrong"]
        assert main(["models", f"--target={server.grpc}", *files, "--token=another"]) == 1
        assert "the bearer token is not valid" in capsys.readouterr().err
        assert server.stop() == 0


async def awaited(target: str, tls: Tls, token: Path) -> None:
    async with AsyncOparaClient(target, tls=tls, token_file=token, timeout=PATIENCE_S) as client:
        np.testing.assert_array_equal((await client.infer("small", {"x": X}))["output"], Y)
        assert [answer async for _, answer in client.infer_stream([InferRequest("small", {"x": X})])]
        assert await client.models()
    async with AsyncOparaClient(target, tls=tls, token="wrong", timeout=PATIENCE_S) as client:
        with pytest.raises(Unauthenticated, match="not valid"):
            await client.infer("small", {"x": X})


def test_a_key_of_another_certificate_is_one_readable_line(small: Path, authority: Authority, own: Issued) -> None:
    files = (f"--tls-certificate={authority.file}", f"--tls-key={own.key}")
    ended = run("serve", f"--models={small}", "--port=0", "--metrics-port=0", *files, cwd=small)
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("opara-server: ")]
    assert line == f"opara-server: {own.key} is not the key of the certificate in {authority.file}"
    assert "Traceback" not in ended.stderr
