"""Triton's own Python client against a server of ours: synchronous, asynchronous, streaming, and all it asks beside."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import torch

from opara_server.engine.spec import ELEMENT_BYTES, TensorSpec
from opara_server.rpc.oip_wire import DATATYPES
from opara_server.rpc.transports import AIO, CQ
from tests.rpc.served import WORKER, serve, write_model
from tests.serving.fakes import FakeCompiled

ROOT = Path(__file__).parents[2]
SPECS = (
    *(TensorSpec(DATATYPES[dtype].lower(), dtype, (3,)) for dtype in ELEMENT_BYTES),
    TensorSpec("nothing", "float32", (0,)),
)


def echo(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return inputs


@pytest.mark.parametrize("transport", [AIO, CQ, WORKER])
async def test_tritonclient_works_unchanged(tmp_path: Path, transport: str) -> None:
    models = write_model(tmp_path / "models", "echo")

    def compiled(name: str, *_rest: object) -> FakeCompiled:
        return FakeCompiled(name, inputs=SPECS, outputs=SPECS, forward=echo)

    async with serve(models, compiled, admin=True, transport=transport) as served:
        session = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.rpc.tritonclient_session", served.app.grpc_address),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        told, _ = await asyncio.wait_for(session.communicate(), 280)
    assert session.returncode == 0, told.decode()
    assert told == b"all as it should be\n"
