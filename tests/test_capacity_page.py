"""docs/capacity.md is true: its commands, what they print, its links, and the target that pods are scaled by."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from opara_client.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "capacity.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [text for named, text in found if named == language]


def commands(program: str) -> list[list[str]]:
    """The arguments of each of the page's shell commands that runs ``program``."""
    lines = [shlex.split(line.partition(" > ")[0]) for block in blocks("bash") for line in block.splitlines()]
    return [words[1:] for words in lines if words[0] == program]


def counts(table: str) -> list[list[str]]:
    """Of each load, what is a whole number and does not depend on rounding."""
    return [line.split()[:5] for line in table.splitlines() if re.match(r" *\d+/s", line)]


def test_the_example_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = [words for words in commands("opara-client") if "--batch-ms" in words]
    assert main(words) == 0
    printed = capsys.readouterr().out
    (shown,) = blocks("")
    assert counts(shown)
    assert counts(printed) == counts(shown)
    assert printed.splitlines()[:3] == shown.splitlines()[:3]


def test_the_other_commands_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """Their files and servers are not there, which is told after all options were read."""
    unreached = {"perf": 1, "capacity": 2}
    for words in commands("opara-client"):
        if "--batch-ms" not in words:
            assert ended([word.replace("BALANCER:50051", "127.0.0.1:1") for word in words]) == unreached[words[0]]
    assert "--metrics before: " in capsys.readouterr().err


def ended(words: list[str]) -> int | str | None:
    try:
        return main(words)
    except SystemExit as error:
        return error.code


def test_links_lead_to_files() -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


def test_metrics_have_their_names() -> None:
    known = (ROOT / "docs" / "metrics.md").read_text()
    for name in set(re.findall(r"\bopara_\w+?(?=_sum\b|_count\b|\b)", PAGE)):
        assert f"`{name}`" in known, name


def test_the_target_is_the_one_that_pods_are_scaled_by() -> None:
    hpa = yaml.safe_load((ROOT / "deploy" / "k8s" / "components" / "hpa" / "hpa.yaml").read_text())
    (metric,) = hpa["spec"]["metrics"]
    milliseconds = metric["pods"]["target"]["averageValue"].removesuffix("m")
    operations = (ROOT / "docs" / "operations.md").read_text()
    assert f"`averageValue` {milliseconds} ms" in " ".join(PAGE.split())
    assert f"its batch at {milliseconds} ms" in " ".join(operations.split())
