"""``opara-client capacity`` from its arguments to what it prints, and the plan behind it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opara_client import capacity_plan
from opara_client.capacity_model import ReplicaModel
from opara_client.capacity_plan import Objective, Offered, fewest, highest, in_zones, meets, requests
from opara_client.cli import main
from opara_client.inputs import InputError
from tests.client.test_capacity_figures import AFTER, BEFORE, closed

Output = pytest.CaptureFixture[str]
MODEL = ReplicaModel({1: 0.001, 8: 0.0034, 32: 0.0115}, front_s=1e-4, base_s=0.001)
OBJECTIVE = Objective(0.99, 0.02)
BATCHES = ("--batch-ms", "1=1,8=3.4,32=11.5", "--front-us", "100", "--base-ms", "1")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulations of few requests: what is asked is how figures come and go, not whether they are right."""
    monkeypatch.setattr(capacity_plan, "requests", lambda _replicas, _share: 5000)


def printed(capsys: Output, *words: str) -> dict[str, Any]:
    assert main(["capacity", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("rate", [500, 12_000])
def test_one_replica_less_does_not_meet_the_objective(rate: float) -> None:
    offered = Offered(rate)
    replicas = fewest(MODEL, offered, OBJECTIVE)
    assert meets(MODEL, replicas, offered, OBJECTIVE)
    assert replicas == 1 or not meets(MODEL, replicas - 1, offered, OBJECTIVE)


def test_bursts_need_more_replicas() -> None:
    assert fewest(MODEL, Offered(12_000, burst=64), OBJECTIVE) > fewest(MODEL, Offered(12_000), OBJECTIVE)


def test_the_highest_load_is_where_the_objective_ends() -> None:
    offered = Offered(1000)
    most = highest(MODEL, 3, offered, OBJECTIVE)
    assert 0.6 < most / 3 / MODEL.requests_per_s < 1
    assert meets(MODEL, 3, replace(offered, rate=most), OBJECTIVE)
    assert not meets(MODEL, 3, replace(offered, rate=1.03 * most), OBJECTIVE)


def test_no_number_of_replicas_makes_a_lone_request_faster() -> None:
    with pytest.raises(InputError, match=r"meets no other takes 2\.10 ms"):
        fewest(MODEL, Offered(1), Objective(0.99, 0.002))


def test_no_number_of_replicas_makes_up_for_chance() -> None:
    """At random some request of a burst meets another, however many replicas there are."""
    model = ReplicaModel({1: 1.0})
    with pytest.raises(InputError, match="bursts alone"):
        fewest(model, Offered(0.1, burst=4, balancer="random"), Objective(0.99, 1.5))


@pytest.mark.parametrize(("replicas", "zones", "wanted"), [(1, 3, 2), (2, 3, 3), (3, 3, 5), (4, 3, 6), (10, 2, 20)])
def test_what_is_left_when_a_zone_is_lost_suffices(replicas: int, zones: int, wanted: int) -> None:
    assert in_zones(replicas, zones) == wanted


def test_enough_requests_are_simulated_for_a_high_percentile() -> None:
    assert requests(1, 0.99) == 100_000
    assert requests(1, 0.9999) == pytest.approx(10**7, rel=0.01)
    assert requests(1000, 0.99) == 1_000_000


def test_replicas_for_a_load(capsys: Output) -> None:
    found = printed(capsys, *BATCHES, "--rate", "6000", "--slo-ms", "20")
    assert found["objective"] == {"share": 0.99, "latency_s": 0.02}
    assert found["replica"]["requests_per_s"] == pytest.approx(32 / 0.0115)
    (several,) = found["needs"]
    assert several["replicas"] == fewest(MODEL, Offered(6000), OBJECTIVE)
    assert several["replica_lost"] == several["replicas"] + 1
    assert several["zone_lost"] == in_zones(several["replicas"], 3)
    assert several["zone_lost_in_update"] == in_zones(several["replicas"] + 1, 3)
    assert several["quantile_s"] <= 0.02
    assert several["most_per_s"] >= 6000
    assert 0 < several["target_s"] < several["quantile_s"]


@pytest.mark.usefixtures("short")
def test_the_table_says_what_its_columns_mean(capsys: Output) -> None:
    assert main(["capacity", *BATCHES, "--rate", "500", "--slo-ms", "20", "--percentile", "95"]) == 0
    said = capsys.readouterr().out
    head = next(line for line in said.splitlines() if "load" in line)
    assert " ".join(head.split()).endswith("zone lost zone, update p50 p95 ± queue batch up to each target")
    for column in (
        "replicas:",
        "1 lost:",
        "zone lost:",
        "zone, update:",
        "queue:",
        "batch:",
        "up to:",
        "each, target:",
    ):
        assert column in said


@pytest.mark.usefixtures("short")
def test_figures_come_from_files_and_numbers_go_before_them(capsys: Output, tmp_path: Path) -> None:
    (tmp_path / "before").write_text(BEFORE)
    (tmp_path / "after").write_text(AFTER)
    (tmp_path / "perf").write_text(json.dumps({"rows": 1, "runs": [closed(1, 60, 20_000)]}))
    files = ("--metrics", str(tmp_path / "before"), str(tmp_path / "after"), "--perf", str(tmp_path / "perf"))
    words = ("m", *files, "--rate", "20", "--slo-ms", "100")
    replica = printed(capsys, *words)["replica"]
    assert replica["batch_s"] == pytest.approx({"1": 0.013, "8": 0.033})
    assert (replica["front_s"], replica["lone_s"]) == (pytest.approx(0.002), pytest.approx(0.020))
    replica = printed(capsys, *words, "--front-us", "500", "--rows", "2", "--queue-delay-us", "1000")["replica"]
    assert (replica["front_s"], replica["delay_s"], replica["rows"]) == (0.0005, 0.001, 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rate", "5", "--slo-ms", "20"), "give --metrics or --batch-ms"),
        (("--metrics", "x", "--rate", "5", "--slo-ms", "20"), "of which MODEL"),
        (("m", "--metrics", "a", "b", "c", "--rate", "5", "--slo-ms", "20"), "one from before a load"),
        ((*BATCHES, "--rate", "5", "--slo-ms", "2"), "no number of replicas"),
        ((*BATCHES, "--rate", "5", "--slo-ms", "20", "--rows", "33"), "33 rows a request"),
        ((*BATCHES, "--rate", "5", "--slo-ms", "20", "--rows", "4", "--queue-rows", "3"), "holds no request of 4"),
        ((*BATCHES, "--rate", "0", "--slo-ms", "20"), "expected a number above 0"),
        ((*BATCHES, "--rate", "5", "--slo-ms", "20", "--zones", "1"), "expected a whole number above 1"),
        ((*BATCHES, "--rate", "5", "--slo-ms", "20", "--percentile", "100"), "between 0 and 100"),
        (("--batch-ms", "1", "--rate", "5", "--slo-ms", "20"), "expected SIZE=MS"),
        (("--batch-ms", "1=0", "--rate", "5", "--slo-ms", "20"), "expected a number above 0"),
    ],
)
def test_wrong_usage_is_told(capsys: Output, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["capacity", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
