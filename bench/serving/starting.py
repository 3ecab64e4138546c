"""A contestant's way from a command line to the first right answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from bench.serving.caller import connected
from bench.serving.checking import sampled
from bench.serving.contestants import Contestant
from bench.serving.measuring import Running
from bench.serving.payloads import PAYLOADS, Payload
from bench.serving.process import Place, started

START_TIMEOUT_S = 180.0


def start(contestant: Contestant, cores: Sequence[int], folder: Path, stack: ExitStack) -> Running:
    """Begun, not ready; ``stack`` stops it. ``folder``: to be made. Raises MissingPeerError and OSError."""
    port, http_port, metrics_port = free_ports(3)
    place = Place(port, http_port, metrics_port, folder / "place")
    place.folder.mkdir(parents=True)
    server = stack.enter_context(started(contestant.launch(place), cores, folder / "log"))
    return Running(contestant, place, server, folder)


def wait_until_right(running: Running) -> None:
    """Until every model answers rightly. Raises ServerError where that does not come in START_TIMEOUT_S."""
    deadline = time.monotonic() + START_TIMEOUT_S
    running.server.wait_for_ready_line(deadline)
    for payload in PAYLOADS.values():
        while _problems(running, payload):
            running.server.check(deadline)
            time.sleep(0.2)


def _problems(running: Running, payload: Payload) -> list[str]:
    """Of one call on a new connection: one that was refused would wait before it tries again."""
    protocol = running.contestant.protocol
    with connected(running.target, protocol.method) as call:
        return sampled(call, protocol, payload, np.random.default_rng(), 1)


def free_ports(count: int) -> list[int]:
    """Nobody's now; a server that finds one taken meanwhile does not start."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
