"""Triton's own Python client and a real server process: every element type there and back, streams, loading."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from opara_server.engine.spec import ELEMENT_BYTES
from tests.e2e.conftest import write_model
from tests.e2e.nets import Echo
from tests.e2e.server_process import PATIENCE_S, ROOT, environment, running


def echo_toml() -> str:
    inputs = [
        f'[[inputs]]\nname = "{name}"\ndtype = "{dtype}"\nshape = [3]\n'
        + ("range = [0, 100]\n" if "int" in dtype else "")
        for name, dtype in zip(Echo.NAMES, ELEMENT_BYTES, strict=False)
    ]
    head = 'source = "python:tests.e2e.nets:Echo"\nbatch_sizes = [1, 4]\npolicy = "sequential"\n'
    return "\n".join(
        [
            head,
            *inputs,
            '[[inputs]]\nname = "nothing"\ndtype = "float32"\nshape = [0]\n',
            "[batching]\nmax_rows = 16\n",
        ]
    )


def test_tritonclient_works_unchanged(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "echo", echo_toml())
    with running(tmp_path / "models", "--admin") as server:
        done = subprocess.run(
            [sys.executable, "-m", "tests.rpc.tritonclient_session", server.grpc],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert (done.returncode, done.stdout) == (0, "all as it should be\n"), done.stderr
        assert server.stop() == 0
