"""What docs/status.md says of numbers, metrics, options and links is true."""

from __future__ import annotations

import re
from pathlib import Path

from opara_server.config import ServerConfig
from opara_server.observe.exposition import AT_ONCE, PATIENCE_S
from opara_server.observe.metrics import Metrics
from opara_server.observe.occupancy import LONGEST_S, MOST_SHOWN, REPLAYS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "status.md").read_text()


def test_the_bounds_are_those_of_the_code() -> None:
    assert (REPLAYS, PATIENCE_S) == (10, 10.0)
    assert f"takes ten replays, or as many as run in {LONGEST_S * 1e3:.0f} ms" in PAGE
    assert f"At most {AT_ONCE} connections are served at a time, each given ten seconds" in PAGE
    assert f"at most\n{MOST_SHOWN:,} operators" in PAGE


def test_every_metric_and_option_that_it_names_is_there() -> None:
    known = {metric.name for metric in Metrics().declared}
    assert set(re.findall(r"opara_stream\w+", PAGE)) == {name for name in known if name.startswith("opara_stream")}
    options = {"--" + name.removesuffix("_s").replace("_", "-") for name in ServerConfig.model_fields}
    assert set(re.findall(r"--[a-z][\w-]+", PAGE)) <= options | {"--batch-size", "--json"}


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert "status.png" in links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
