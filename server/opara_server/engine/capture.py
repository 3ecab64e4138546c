"""Schedule → captured graph: the one place where the engine's plain data meets a device."""

from __future__ import annotations

import torch

from opara_server.engine.device import CapturedGraph, Device
from opara_server.engine.errors import CaptureError, first_line
from opara_server.engine.launch import LaunchList, launch_list
from opara_server.engine.program import Program
from opara_server.engine.schedule import Schedule, fold
from opara_server.engine.steps import Steps


def capture(program: Program, schedule: Schedule, device: Device, *, passing: bool = False) -> CapturedGraph:
    """``passing``: as Device.capture has it. Raises ScheduleError on a schedule that is wrong for the program,
    CaptureError where the device refuses."""
    return device.capture(program, _launches(program, schedule, device), passing=passing)


def capturing(program: Program, schedule: Schedule, device: Device) -> Steps[CapturedGraph]:
    """``capture`` while the device does other work between the steps. What kernels take to be planned and loaded when
    they first run is most of it, so each operator has run once before the last step, in a step of its own."""
    launches = _launches(program, schedule, device)
    yield
    yield from _run_ahead(program, launches, device)
    with device.tuning():
        return device.capture(program, launches)


def _run_ahead(program: Program, launches: LaunchList, device: Device) -> Steps[None]:
    """In the order of the launches, on the current stream and in memory of its own. Raises CaptureError."""
    try:
        block = torch.empty(launches.arena.size, dtype=torch.uint8, device=device.torch_device())
        environment = program.new_environment(program.prepare(launches.arena, block))
        for launch in launches.launches:
            for buffer in launch.frees:
                program.release(buffer, environment)
            with device.tuning():
                program.run(launch.operator, environment)
            yield
    except Exception as error:  # whatever the model's own code raises
        raise CaptureError(f"the model's operators fail: {first_line(error)}") from error


def _launches(program: Program, schedule: Schedule, device: Device) -> LaunchList:
    return launch_list(program.graph, fold(program.graph, schedule, device.max_streams))
