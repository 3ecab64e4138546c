"""Systems compile in order, some of them besides; what is late is left out, and what measures waits for its turn."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import NoReturn

import pytest

from bench.background import Background
from bench.cells import CellKey
from bench.interruption import AGAIN_S, OutOfTimeError, interrupted_at
from bench.preparing import capture_all, compile_all
from bench.subject import Subject, opened_subject
from bench.systems import System
from bench.systems.runners import Called
from bench.systems.scheduled import ours
from bench.systems.system import Capture, Order, Prepared
from opara_server.engine.compiled import EXPORTING, MEASURING, Progress
from tests.bench.tiny import BRANCHES


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with opened_subject(CellKey("tiny", "float32", 2), BRANCHES, "cpu", 0.01, 0.5) as opened:
        yield opened


def prepared(subject: Subject) -> Prepared:
    return Prepared(Called(subject.flat, subject.inputs))


def system(name: str, order: Order, compile_it: Callable[[Subject], Capture | Background[Prepared]]) -> System:
    return System(name, compile_it, order, needs_cuda=False)


def plain(name: str, order: Order, did: list[str]) -> System:
    def start(subject: Subject) -> Capture:
        did.append(f"{name} compiles")
        return lambda: prepared(subject)

    return system(name, order, start)


class Besides:
    """A system whose compilation ends when it is told to."""

    def __init__(self, did: list[str]) -> None:
        self.end = threading.Event()
        self.ended = False
        self.did = did

    def start(self, subject: Subject) -> Background[Prepared]:
        made = prepared(subject)

        def work(progress: Progress) -> Prepared:
            progress(EXPORTING, 0.0)
            self.did.append("exported")
            try:
                while not self.end.wait(0.01):
                    progress("searching", 0.1)
            finally:
                self.ended = True
            progress(f"{MEASURING} batch size 1", 0.5)
            self.did.append("measures")
            progress(f"{MEASURING} batch size 2", 0.6)  # waits for nobody any more
            return made

        return Background(work)


def test_systems_compile_in_order_and_stay_in_theirs(subject: Subject) -> None:
    did: list[str] = []
    besides = Besides(did)

    def last(subject: Subject) -> Capture | Background[Prepared]:
        besides.end.set()
        return plain("last", Order.LAST, did).compile(subject)

    systems = [
        system("last", Order.LAST, last),
        plain("here", Order.HERE, did),
        plain("first", Order.FIRST, did),
        system("ours", Order.BESIDES, besides.start),
    ]
    failed: dict[str, str] = {}
    compiled = compile_all(subject, systems, failed)
    assert did == ["exported", "first compiles", "here compiles", "last compiles"]
    assert list(compiled) == ["last", "here", "first", "ours"]
    assert list(capture_all(subject, compiled, failed)) == ["last", "here", "first", "ours"]
    assert did[-1] == "measures"
    assert not failed


class Clock:
    """``up`` is when it is ``until``: at once, whatever was done before."""

    def __init__(self) -> None:
        self.now, self.until = 0.0, 1000.0

    def up(self) -> NoReturn:
        self.now = self.until
        signal.raise_signal(signal.SIGALRM)
        raise AssertionError("nobody is interrupted")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    told = SimpleNamespace(time=lambda: clock.now, perf_counter=time.perf_counter)
    monkeypatch.setattr("bench.preparing.time", told)
    monkeypatch.setattr("bench.interruption.time", told)
    return clock


def test_what_is_late_is_left_out(subject: Subject, clock: Clock) -> None:
    did: list[str] = []
    besides = Besides(did)

    def endless(_subject: Subject) -> Capture:
        try:
            clock.up()
        except Exception:  # noqa: BLE001 - as compilers do
            did.append("went on")
        raise AssertionError

    systems = [
        plain("here", Order.HERE, did),
        system("long", Order.LAST, endless),
        system("ours", Order.BESIDES, besides.start),
    ]
    failed: dict[str, str] = {}
    assert list(compile_all(subject, systems, failed, clock.until)) == ["here"]
    assert not failed
    assert did == ["exported", "here compiles"]
    assert besides.ended


@pytest.mark.parametrize("limited", [False, True], ids=["fails", "is cut off"])
def test_what_goes_wrong_in_the_tree_takes_its_other_graphs_along(
    subject: Subject, limited: bool, clock: Clock
) -> None:
    def wrong(_subject: Subject) -> Capture:
        if not limited:
            raise RuntimeError("out of memory")
        clock.up()

    systems = [
        replace(plain("kept", Order.FIRST, []), in_a_tree=False),
        replace(plain("before", Order.HERE, []), in_a_tree=True),
        replace(system("wrong", Order.LAST, wrong), in_a_tree=True),
    ]
    failed: dict[str, str] = {}
    assert list(compile_all(subject, systems, failed, clock.until if limited else None)) == ["kept"]
    assert failed == ({} if limited else {"wrong": "RuntimeError: out of memory"})


def test_what_fails_besides_is_told(subject: Subject) -> None:
    def start(_subject: Subject) -> Background[Prepared]:
        def work(_progress: Progress) -> Prepared:
            raise ValueError("no such thing")

        return Background(work)

    failed: dict[str, str] = {}
    compiled = compile_all(subject, [system("ours", Order.BESIDES, start)], failed)
    assert capture_all(subject, compiled, failed) == {}
    assert failed == {"ours": "ValueError: no such thing"}


def test_waiting_for_the_turn_is_nobodys_work(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("bench.background.time.perf_counter", lambda: now)
    did: list[str] = []
    besides = Besides(did)
    besides.end.set()
    background = besides.start(subject)
    assert background.compiled(None) == 0
    now = 1e6
    background.finish()
    assert background.compiled(None) == 0


def test_this_engine_waits_for_its_turn(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opara_server.engine.choose.Search.choose", choose := Watched())
    background = ours(subject)
    assert background.compiled(None) is not None
    assert not choose.called
    with pytest.raises(StopIteration):
        background.finish()
    assert choose.called


class Watched:
    called = False

    def __call__(self, *_arguments: object) -> object:
        self.called = True
        raise StopIteration


def test_work_is_interrupted_at_its_time() -> None:
    with pytest.raises(OutOfTimeError), interrupted_at(time.time() + 0.05):
        time.sleep(600)


def test_it_is_interrupted_again_and_again_until_it_ends() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with interrupted_at(time.time() + 3600):
        first_s, again_s = signal.getitimer(signal.ITIMER_REAL)
        for _ in range(3):
            with pytest.raises(OutOfTimeError):
                signal.raise_signal(signal.SIGALRM)
    assert 0 < first_s <= 3600
    assert again_s == AGAIN_S
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == before


def test_without_a_time_nothing_is_interrupted() -> None:
    with interrupted_at(None):
        pass
