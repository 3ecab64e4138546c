"""Real Prometheus and Alertmanager processes, configured by the files of deploy/ but for names, ports and times."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from bench.serving.starting import free_ports

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
PROMETHEUS, ALERTMANAGER, PROMTOOL = "prometheus", "prometheus-alertmanager", "promtool"  # as Debian calls them
TOOLS = (PROMETHEUS, ALERTMANAGER, PROMTOOL)
PATIENCE_S = 120.0
INTERVAL = "1s"  # of scrapes and rules, instead of deploy's


class QueryError(Exception):
    """What Prometheus said against a query."""


@dataclass(frozen=True)
class Series:
    """``points``: (seconds since the epoch, value), one of them of an instant query."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Monitoring:
    """``prometheus`` and ``alertmanager`` are URLs."""

    prometheus: str
    alertmanager: str

    def query(self, expr: str) -> list[Series]:
        """Now. Raises QueryError."""
        found = self._ask("query", query=expr)
        return [Series(one["metric"], (_point(one["value"]),)) for one in found]

    def query_range(self, expr: str, begin: float, end: float, step_s: float) -> list[Series]:
        """From ``begin`` to ``end``, seconds since the epoch. Raises QueryError."""
        found = self._ask("query_range", query=expr, start=begin, end=end, step=step_s)
        return [Series(one["metric"], tuple(map(_point, one["values"]))) for one in found]

    def alerts(self) -> list[dict[str, Any]]:
        """What Alertmanager has been told of and holds for active."""
        active: list[dict[str, Any]] = _json(f"{self.alertmanager}/api/v2/alerts?active=true")
        return active

    def exemplars(self, expr: str) -> list[dict[str, Any]]:
        """Of the last minute: what ``expr``'s series are marked with."""
        now = time.time()
        parameters = urlencode({"query": expr, "start": now - 60, "end": now})
        answer = _json(f"{self.prometheus}/api/v1/query_exemplars?{parameters}")
        return [exemplar for series in answer["data"] for exemplar in series["exemplars"]]

    def _ask(self, what: str, **parameters: object) -> list[dict[str, Any]]:
        try:
            answer = _json(f"{self.prometheus}/api/v1/{what}?{urlencode(parameters)}")
        except HTTPError as error:
            raise QueryError(json.load(error)["error"]) from None
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


def missing_tools() -> list[str]:
    return [tool for tool in TOOLS if shutil.which(tool) is None]


@contextmanager
def monitoring(
    folder: Path, targets: Sequence[str], *, hasty: bool = False, namespaces: Mapping[str, str] | None = None
) -> Iterator[Monitoring]:
    """Scrape ``targets``, ``host:port`` each; ``namespaces``: of some of them, as Kubernetes would tell. ``folder``:
    for what both keep. ``hasty``: alerts wait for nothing, and look at seconds instead of minutes. Raises RuntimeError
    where one of them does not get ready."""
    port, alert_port = free_ports(2)
    prometheus, alertmanager = f"127.0.0.1:{port}", f"127.0.0.1:{alert_port}"
    rules = yaml.safe_load((DEPLOY / "rules.yml").read_text())
    (folder / "rules.yml").write_text(json.dumps(_hastened(rules) if hasty else rules))
    config = configured(
        yaml.safe_load((DEPLOY / "prometheus.yml").read_text()), folder, targets, alertmanager, namespaces
    )
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with ExitStack() as stack:
        stack.enter_context(_running(folder, ALERTMANAGER, alertmanager, _alertmanager(folder)))
        storage = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        storage.append("--enable-feature=exemplar-storage")
        stack.enter_context(_running(folder, PROMETHEUS, prometheus, storage))
        yield Monitoring(f"http://{prometheus}", f"http://{alertmanager}")


def configured(
    config: dict[str, Any],
    folder: Path,
    targets: Sequence[str],
    alertmanager: str,
    namespaces: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """deploy's prometheus.yml for other addresses, and with no time to lose."""
    labels = {target: {"namespace": namespace} for target, namespace in (namespaces or {}).items()}
    static = [{"targets": [target], "labels": labels.get(target, {})} for target in targets]
    (job,) = config["scrape_configs"]
    (receiver,) = config["alerting"]["alertmanagers"]
    return {
        **config,
        "global": {**config["global"], "scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": [str(folder / Path(file).name) for file in config["rule_files"]],
        "scrape_configs": [{**job, "static_configs": static}],
        "alerting": {"alertmanagers": [{**receiver, "static_configs": [{"targets": [alertmanager]}]}]},
    }


def _hastened(rules: dict[str, Any]) -> dict[str, Any]:
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = rule["expr"].replace("[5m]", "[5s]")
            rule.pop("for", None)
    return rules


def _alertmanager(folder: Path) -> list[str]:
    return [
        f"--config.file={DEPLOY / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alerts'}",
        "--cluster.listen-address=",
    ]


@contextmanager
def _running(folder: Path, name: str, address: str, options: Sequence[str]) -> Iterator[None]:
    log = folder / f"{name}.log"
    command = [name, f"--web.listen-address={address}", *options]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            _wait_until_ready(f"http://{address}/-/ready", process, log)
            yield
        finally:
            process.terminate()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urlopen(url, timeout=PATIENCE_S):
                return
        except (URLError, ConnectionError) as error:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{url}: {error}; it wrote last:\n{log.read_text()[-2000:]}") from None
        time.sleep(0.1)


def _json(url: str) -> Any:
    with urlopen(url, timeout=PATIENCE_S) as answer:
        return json.load(answer)


def _point(pair: tuple[float, str]) -> tuple[float, float]:
    return pair[0], float(pair[1])
