"""One line per event, for people and for machines."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator

import pytest
from rich.console import Console

from opara_server.observe.logs import news_only, set_up
from opara_server.report import progress_on

log = logging.getLogger("opara_server.test")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.handlers = [handler for handler in root.handlers if handler.get_name() != "opara"]
    root.setLevel(level)
    logging.getLogger("grpc").setLevel(logging.NOTSET)


def test_json_lines_carry_the_fields() -> None:
    out = io.StringIO()
    set_up("json", "info", out)
    log.info("model %s", "READY", extra={"model": "m", "seconds": 1.5})
    line = json.loads(out.getvalue())
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "opara_server.test",
        "message": "model READY",
        "model": "m",
        "seconds": 1.5,
    }


def test_debug_lines_are_our_own() -> None:
    out = io.StringIO()
    set_up("text", "debug", out)
    log.debug("ours")
    logging.getLogger("grpc._cython.cygrpc").debug("theirs")
    assert ("ours" in out.getvalue(), "theirs" in out.getvalue()) == (True, False)
    set_up("text", "warning", out)
    logging.getLogger("grpc._cython.cygrpc").info("theirs")
    assert "theirs" not in out.getvalue()


def test_lines_of_a_process_among_others_say_whose_they_are() -> None:
    out = io.StringIO()
    set_up("json", "info", out, role="engine")
    log.info("ready")
    line = json.loads(out.getvalue())
    assert (line["role"], line["pid"]) == ("engine", os.getpid())


def test_json_keeps_a_traceback_on_its_line() -> None:
    out = io.StringIO()
    set_up("json", "info", out)
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    (line,) = out.getvalue().splitlines()
    assert "ValueError: broken" in json.loads(line)["exception"]


def test_text_lines_cannot_be_forged() -> None:
    out = io.StringIO()
    set_up("text", "info", out)
    log.warning("no model %s", "x\nERROR forged", extra={"model": "m"})
    (line,) = out.getvalue().splitlines()
    assert line.endswith(r"WARNING no model x\nERROR forged model='m'")


def test_the_level_holds_and_setting_up_twice_does_not_double_lines() -> None:
    out = io.StringIO()
    set_up("text", "info", io.StringIO())
    set_up("text", "warning", out)
    log.info("quiet")
    log.warning("loud")
    assert len(out.getvalue().splitlines()) == 1


def test_only_news_is_told_and_of_one_text_not_too_often() -> None:
    told: list[tuple[str, float]] = []
    now = 0.0
    report = news_only(lambda what, share: told.append((what, share)), every_s=10.0, now=lambda: now)
    for second in range(25):
        now = float(second)
        report("compiling", 0.001 * second)
    report("compiling", 0.024)
    now = 100.0
    report("compiling", 0.0241)  # the same percentage
    report("measuring", 0.5)
    report("measuring", 0.6)
    report("compiling", 0.6)
    assert told == [("compiling", 0.0), ("compiling", 0.01), ("compiling", 0.02), *told[3:]]
    assert told[3:] == [("measuring", 0.5), ("compiling", 0.6)]


def test_progress_that_stands_still_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), progress_on(Console(file=io.StringIO())) as progress:
        for _ in range(20):
            progress("googlenet: searching", 0.1)
    assert caplog.messages == [" 10 % googlenet: searching"]
