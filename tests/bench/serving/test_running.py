"""Layouts; and one short run of the echo, from its start to its end."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.serving import tables
from bench.serving.contestants import Contestant, contestants
from bench.serving.keeping import MOST_RESTARTS, Keeper
from bench.serving.measuring import Settings
from bench.serving.process import Launch, ServerError
from bench.serving.processes import all_processes
from bench.serving.results import Cell, Results
from bench.serving.running import Layout, layouts, run
from bench.serving.starting import start


def test_layouts_take_four_cores_and_share_none() -> None:
    halves, three = layouts([7, 3, 5, 1, 9])
    assert (halves.name, halves.server_cores, halves.generator_cores) == ("2+2", (1, 3), (5, 7))
    assert (three.name, three.server_cores, three.generator_cores) == ("3+1", (1, 3, 5), (7,))


def test_too_few_cores_are_refused() -> None:
    with pytest.raises(ValueError, match="four cores are needed"):
        layouts([0, 1])


def test_payloads_can_be_left_out() -> None:
    halves, three = layouts(range(4))
    assert halves.restricted(["image", "tiny"]).payloads == ("tiny", "image")
    assert three.restricted(["tiny"]).payloads == ()
    with pytest.raises(ValueError, match="no payload called huge"):
        halves.restricted(["huge"])


@pytest.fixture
def same_cores() -> Iterator[tuple[int, ...]]:
    """All that there are; the run changes them for this process."""
    cores = os.sched_getaffinity(0)
    yield tuple(cores)
    os.sched_setaffinity(0, cores)


@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load")
def test_an_echo_is_measured_and_nothing_is_left(tmp_path: Path, same_cores: tuple[int, ...]) -> None:
    layout = Layout(same_cores, same_cores, ("tiny",))
    [echo] = contestants(only=["echo-1"])
    broken = Contestant("broken", "broken", "Broken", echo.protocol, lambda _: Launch(("false",)))
    told: list[str] = []
    before = children()
    for seconds in (0.2, 2.0, 20.0):  # in which a busy machine may not answer a single request
        settings = Settings(rounds=1, seconds=seconds, warm_up_s=0.1, samples=1)
        entrants, rounds = run(layout, [echo, broken], [1, 8], settings, tmp_path, told.append)
        if not any(found.problems for [found] in rounds.values()):
            break
    assert list(rounds) == [Cell(layout.name, "tiny", callers, "echo-1") for callers in (1, 8)]
    for [found] in rounds.values():
        assert found.problems == ()
        assert found.requests_per_s > 0
        assert 0 < found.p50_us <= found.p99_us
    assert [bool(one.failed) for one in entrants] == [False, True]
    assert "broken does not take part" in told[0]
    assert children() <= before


@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load")
def test_a_server_that_has_ended_is_started_again_and_the_result_says_so(
    tmp_path: Path, same_cores: tuple[int, ...]
) -> None:
    layout = Layout(same_cores, same_cores, ("tiny",))
    [echo] = contestants(only=["echo-1"])
    told: list[str] = []
    before = children()

    def kill(line: str) -> None:
        """The server, once it has been measured for the first time."""
        told.append(line)
        if line.startswith("1/2"):
            for pid in children() - before:
                os.kill(pid, signal.SIGKILL)
            while children() - before:
                time.sleep(0.01)

    entrants, rounds = run(layout, [echo], [1], Settings(rounds=2, seconds=0.2, samples=1), tmp_path, kill)
    assert [one.restarts for one in entrants] == [1]
    assert told[1] == "echo-1 ended with exit status -9: it is started again"
    [found] = rounds.values()
    assert len(found) == 2
    assert not any("ended" in problem for problem in found[1].problems)
    report = tables.report(Results({}, {}, {layout.name: entrants}, rounds))
    assert f"started again, so many times:\n\n- {echo.title}: 1\n" in report
    assert children() <= before


def test_a_server_that_ends_again_and_again_is_given_up(tmp_path: Path, same_cores: tuple[int, ...]) -> None:
    [echo] = contestants(only=["echo-1"])
    broken = Contestant("broken", "broken", "Broken", echo.protocol, lambda _: Launch(("false",)))
    told: list[str] = []
    with ExitStack() as stack:
        keeper = Keeper(same_cores, tmp_path / "again", stack, told.append)
        running = start(broken, same_cores, tmp_path / "first", stack)
        while running.server.exit_status() is None:
            time.sleep(0.01)
        for _ in range(MOST_RESTARTS):
            with pytest.raises(ServerError, match="ended with exit status 1; it wrote last"):
                keeper.standing(running)
        with pytest.raises(ServerError, match=f"and was started {MOST_RESTARTS + 1} times"):
            keeper.standing(running)
    assert keeper.restarts == {"broken": MOST_RESTARTS}
    assert told == ["broken ended with exit status 1: it is started again"] * MOST_RESTARTS


def children() -> set[int]:
    """Of this process, those that run."""
    mine = os.getpid()
    return {status.pid for status in all_processes() if status.parent == mine and status.state != "Z"}
