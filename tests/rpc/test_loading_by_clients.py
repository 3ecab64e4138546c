"""Our clients have models loaded and unloaded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from opara_client import AsyncOparaClient, HealthStatus, NotFound, OparaClient, Unimplemented
from opara_client.cli import main
from tests.rpc.served import PATIENCE_S, serve, write_model

X = {"x": np.array([[3.0, 4.0]], np.float32)}


async def test_a_model_is_loaded_and_unloaded(models: Path) -> None:
    async with (
        serve(models, admin=True) as served,
        AsyncOparaClient(served.app.grpc_address, timeout=PATIENCE_S) as client,
    ):
        with pytest.raises(NotFound, match="no model 'later'"):
            await client.load("later")
        write_model(models, "later")
        await client.load("later")
        assert (await client.infer("later", X))["y"].tolist() == [[6.0, 8.0]]
        await client.unload("later", timeout=PATIENCE_S)
        assert await client.health("later") is HealthStatus.NOT_SERVING


async def test_the_command_line_has_it_too(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with serve(models, admin=True) as served:
        target = f"--target={served.app.grpc_address}"
        write_model(models, "broken", "batch_sizes = 1")
        for arguments, status in ((["unload", "double"], 0), (["load", "double"], 0), (["load", "broken"], 1)):
            assert await asyncio.to_thread(main, [*arguments, target]) == status
        assert "UNAVAILABLE: model 'broken' could not be loaded: the server's log says why" in capsys.readouterr().err
        assert await served.infer(1.0) == [2.0]


async def test_it_is_for_administrators_only(models: Path) -> None:
    async with serve(models) as served:
        with OparaClient(served.app.grpc_address, timeout=PATIENCE_S) as client:
            for call in (client.load, client.unload):
                with pytest.raises(Unimplemented, match="--admin"):
                    await asyncio.to_thread(call, "double")
