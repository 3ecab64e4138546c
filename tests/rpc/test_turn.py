"""What the thread that serves does beside calls."""

from __future__ import annotations

import pytest

from opara_server.rpc.turn import Turn


class Chore:
    def __init__(self, *, more: bool = False) -> None:
        self.more, self.done = more, 0

    def __call__(self) -> bool:
        self.done += 1
        return self.more


def fails() -> bool:
    raise RuntimeError("no")


def test_there_is_more_to_look_at_if_any_chore_says_so() -> None:
    turn, first, second = Turn(), Chore(more=True), Chore()
    turn.add(second)
    assert not turn.work()
    turn.add(first)
    assert turn.work()
    assert (first.done, second.done) == (1, 2)


def test_a_chore_that_fails_keeps_no_other_from_being_done(caplog: pytest.LogCaptureFixture) -> None:
    turn, chore = Turn(), Chore(more=True)
    turn.add(fails)
    turn.add(chore)
    assert turn.work()
    assert chore.done == 1
    assert "a chore of the thread that serves failed" in caplog.text
    turn.remove(fails)
    caplog.clear()
    turn.work()
    assert not caplog.records


def test_whoever_has_the_turn_goes_on_as_long_as_something_new_is_done() -> None:
    turn = Turn()
    assert turn.goes_on()
    assert turn.goes_on()
    with turn:
        assert turn.goes_on()  # it was taken since
        assert not turn.goes_on()
        turn.work()
        assert turn.goes_on()
        assert not turn.goes_on()
    assert turn.goes_on()
