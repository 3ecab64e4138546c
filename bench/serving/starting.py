"""A contestant's way from a command line to the first right answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import SystemRandom

import numpy as np

from bench.serving.caller import connected
from bench.serving.checking import sampled
from bench.serving.contestants import Contestant
from bench.serving.measuring import Running
from bench.serving.payloads import PAYLOADS, Payload
from bench.serving.process import Place, started

START_TIMEOUT_S = 180.0
_LOWEST = 10_000  # port
_random = SystemRandom()  # nobody's seed makes two processes choose the same


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
    """Nobody's now, and none that the kernel gives to whoever asks for any: a server that finds one taken meanwhile
    does not start."""
    given_away = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            one, port = stack.enter_context(socket.socket()), _random.randrange(_LOWEST, max(given_away, 2 * _LOWEST))
            with suppress(OSError):  # somebody's
                one.bind(("", port))
                found.append(port)
    return found
