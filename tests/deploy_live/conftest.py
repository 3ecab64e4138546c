"""Servers under load, watched by a real Prometheus: skipped where its programs are missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from bench.observing.exposition import RECORDED, replaying
from bench.observing.prometheus import Monitoring, missing_tools, monitoring
from bench.observing.traffic import traffic
from tests.e2e.conftest import BRANCHES_TOML, SMALL_TOML, write_model
from tests.e2e.server_process import running
from tests.otlp import grpc_receiver

SETTLED_S = 8.0  # of load, a scrape each second: rates over five of them have all that they need
PATIENCE_S = 120.0
NAMESPACE = "elsewhere"  # of the second server; the others have none
T = TypeVar("T")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if missing := missing_tools():
        reason = f"needs {', '.join(missing)} (on Debian: apt-get install prometheus prometheus-alertmanager)"
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitoring]:
    """Two servers, of which one has a model that cannot be loaded, and what was recorded of a server on a GPU."""
    folder = tmp_path_factory.mktemp("watched")
    write_model(folder / "a" / "models", "branches", BRANCHES_TOML)
    write_model(folder / "a" / "models", "broken", BRANCHES_TOML.replace("batch_sizes", "bach_sizes"))
    write_model(folder / "b" / "models", "small", SMALL_TOML)
    with ExitStack() as stack:
        collector = stack.enter_context(grpc_receiver())
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
        served = {
            n: stack.enter_context(running(folder / n / "models", "--policy=opara", *options, variables=traced))
            for n, options in (("a", ()), ("b", ("--tracing",)))
        }
        targets = [*(server.metrics for server in served.values()), stack.enter_context(replaying(RECORDED))]
        stack.enter_context(traffic(served["a"].grpc, ["branches"]))
        stack.enter_context(traffic(served["b"].grpc, ["small"]))
        seen = stack.enter_context(monitoring(folder, targets, hasty=True, namespaces={targets[1]: NAMESPACE}))
        settle(seen, len(targets))
        yield seen


def settle(seen: Monitoring, targets: int) -> None:
    """Until every target has been scraped under load for SETTLED_S."""
    scraped = f"count_over_time(opara_build_info[60s]) >= {SETTLED_S}"
    eventually(lambda: seen.query(scraped), lambda found: len(found) == targets)


def eventually(ask: Callable[[], Sequence[T]], right: Callable[[Sequence[T]], object] = bool) -> Sequence[T]:
    """What is told, as soon as it is ``right``: a scrape that a busy machine has missed leaves a hole, for a while.
    Fails when that takes longer than PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while not right(found := ask()):
        assert time.monotonic() < end, found
        time.sleep(0.2)
    return found
