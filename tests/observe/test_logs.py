"""One line per event, for people and for machines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from opara_server.observe.logs import set_up

log = logging.getLogger("opara_server.test")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.handlers = [handler for handler in root.handlers if handler.get_name() != "opara"]
    root.setLevel(level)


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
