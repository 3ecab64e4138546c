"""Schedule → captured graph: the one place where the engine's plain data meets a device."""

from __future__ import annotations

from opara_server.engine.device import CapturedGraph, Device
from opara_server.engine.launch import launch_list
from opara_server.engine.program import Program
from opara_server.engine.schedule import Schedule, fold


def capture(program: Program, schedule: Schedule, device: Device, *, passing: bool = False) -> CapturedGraph:
    """``passing``: as Device.capture has it. Raises ScheduleError on a schedule that is wrong for the program,
    CaptureError where the device refuses."""
    launches = launch_list(program.graph, fold(program.graph, schedule, device.max_streams))
    return device.capture(program, launches, passing=passing)
