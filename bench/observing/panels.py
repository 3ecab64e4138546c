"""What dashboards ask, as Grafana would ask it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards"
NAMES = tuple(sorted(path.stem for path in DASHBOARDS.glob("*.json")))
_METRIC = re.compile(r"\b(?:opara|nv_gpu|process)_\w+")


@dataclass(frozen=True)
class Asked:
    """One query of a panel. ``instant``: of now, not over time."""

    dashboard: str
    panel: str
    expr: str
    legend: str
    instant: bool

    def filled(self, rate_interval: str, **chosen: str) -> str:
        """With all values of every variable, but for those that are ``chosen``."""
        expr = self.expr.replace("$__rate_interval", rate_interval)
        return re.sub(r"\$(?!__)(\w+)", lambda found: chosen.get(found[1], ".*"), expr)

    def metrics(self) -> set[str]:
        return set(_METRIC.findall(self.expr))


def load(name: str) -> dict[str, Any]:
    board: dict[str, Any] = json.loads((DASHBOARDS / f"{name}.json").read_text())
    return board


def queries(name: str) -> Iterator[Asked]:
    for panel in load(name)["panels"]:
        yield from queries_of(name, panel)


def queries_of(name: str, panel: dict[str, Any]) -> Iterator[Asked]:
    for target in panel.get("targets", ()):
        yield Asked(name, panel["title"], target["expr"], target["legendFormat"], bool(target.get("instant")))
