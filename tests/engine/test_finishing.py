"""The last step from a choice to the graph that serves: nothing is lost on the way, and nothing is left open."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from opara_server.engine import finishing
from opara_server.engine.device import CapturedGraph
from opara_server.engine.errors import CaptureError
from opara_server.engine.launch import LaunchList
from opara_server.engine.program import Program
from tests.engine.compiling import assert_right, compiled, streams_are_fast
from tests.engine.devices import ScriptedDevice
from tests.engine.models import Branches


class NoRoomForTwo(ScriptedDevice):
    """On which nothing can be captured that is only compared with."""

    def capture(self, program: Program, launches: LaunchList, *, passing: bool = False) -> CapturedGraph:
        if passing:
            raise CaptureError("out of memory")
        return super().capture(program, launches, passing=passing)


def open_graphs(device: ScriptedDevice) -> int:
    return sum(not graph.closed for graph in device.graphs)


def test_a_right_graph_serves_where_there_is_no_room_for_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Branches()
    for reused in (False, True):
        device = NoRoomForTwo(streams_are_fast)
        model = compiled(module, device=device, policy="opara", cache_dir=tmp_path)
        assert model.plan.reused == reused
        assert {bucket.policy for bucket in model.plan.buckets} == {"opara"}
        assert "not measured again beside sequential: out of memory" in caplog.text
        assert_right(model, module)
        model.close()
        assert open_graphs(device) == 0


def test_what_ends_the_measuring_leaves_no_graph_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = Branches()
    compiled(module, policy="opara", cache_dir=tmp_path).close()

    def broken(*_args: Any) -> Generator[None, None, Any]:
        yield
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(finishing, "measuring", broken)
    device = ScriptedDevice(streams_are_fast)
    with pytest.raises(RuntimeError, match="the device is gone"):
        compiled(module, device=device, policy="opara", cache_dir=tmp_path)
    assert open_graphs(device) == 0
