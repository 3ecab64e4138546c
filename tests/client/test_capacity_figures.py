"""From a server's metrics and what the load generator saw to the model of a replica."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opara_client.capacity_figures import from_metrics, read_metrics, read_perf, samples, with_perf
from opara_client.capacity_model import ReplicaModel
from opara_client.inputs import InputError

BEFORE = """\
# HELP opara_replay_seconds One run of the graph.
opara_replay_seconds_count{bucket="1",model="m"} 10
opara_replay_seconds_sum{bucket="1",model="m"} 1.0
opara_requests_total{code="OK",model="m"} 10
opara_rows_total{model="m"} 10
process_cpu_seconds_total 100
"""
AFTER = """\
opara_replay_seconds_bucket{bucket="1",le="0.1",model="m"} 3
opara_replay_seconds_count{bucket="1",model="m"} 30
opara_replay_seconds_sum{bucket="1",model="m"} 1.2
opara_replay_seconds_count{bucket="8",model="m"} 10
opara_replay_seconds_sum{bucket="8",model="m"} 0.3
opara_replay_seconds_count{bucket="32",model="m"} 0
opara_replay_seconds_sum{bucket="32",model="m"} 0
opara_replay_seconds_count{bucket="1",model="other"} 1
opara_replay_seconds_sum{bucket="1",model="other"} 7
opara_copy_in_seconds_count{model="m"} 30
opara_copy_in_seconds_sum{model="m"} 0.06
opara_copy_out_seconds_count{model="m"} 30
opara_copy_out_seconds_sum{model="m"} 0.03
opara_requests_total{code="OK",model="m"} 60
opara_requests_total{code="INVALID_ARGUMENT",model="m"} 1000
opara_rows_total{model="m"} 110
process_cpu_seconds_total 1.001e+02
"""


def closed(concurrency: int, answers_per_s: float, p50_us: float) -> dict[str, Any]:
    percentiles = {"p50": p50_us}
    return {
        "mode": "closed",
        "concurrency": concurrency,
        "answers_per_s": answers_per_s,
        "latency_us": {"percentiles": percentiles},
    }


def test_batches_take_what_was_counted_of_them() -> None:
    model = from_metrics([AFTER], "m")
    assert model.batch_s == pytest.approx({1: 0.04 + 0.003, 8: 0.03 + 0.003})
    assert (model.rows, model.front_s) == (2, 0.0)


def test_between_two_scrapes_counts_what_came_in_between() -> None:
    model = from_metrics([BEFORE, AFTER], "m")
    assert model.batch_s == pytest.approx({1: 0.01 + 0.003, 8: 0.03 + 0.003})
    assert model.rows == 2
    assert model.front_s == pytest.approx(0.1 / 50)


def test_a_model_that_ran_nothing_is_told() -> None:
    with pytest.raises(InputError, match="no batch of a model 'n'"):
        from_metrics([AFTER], "n")


@pytest.mark.parametrize("swapped", [[AFTER, BEFORE], [AFTER, AFTER]])
def test_nothing_between_two_scrapes_is_told_with_their_order(swapped: list[str]) -> None:
    with pytest.raises(InputError, match=r"no batch of a model 'm' was counted in between: .* comes first"):
        from_metrics(swapped, "m")


def test_values_may_hold_what_labels_are_made_of() -> None:
    found = samples('opara_rows_total{model="a\\"},b",x="1"} 5\n', 'a\\"},b')
    assert found[("opara_rows_total", "")] == 5


@pytest.mark.parametrize("text", ["<html>", "opara_rows_total", "opara_rows_total many", 'opara_rows_total{model="m"}'])
def test_what_is_no_exposition_is_told(text: str) -> None:
    with pytest.raises(InputError, match="not Prometheus' text format"):
        samples(f"# HELP x\n\n{text}\n", "m")


def test_a_lone_caller_says_what_is_neither_batch_nor_front() -> None:
    model = ReplicaModel({1: 0.010, 8: 0.020}, front_s=0.001)
    seen = with_perf(model, {"rows": 1, "runs": [closed(1, 70, 14_000), closed(4, 200, 20_000)]})
    assert seen.base_s == pytest.approx(0.003)
    assert seen.lone_s == pytest.approx(0.014)
    assert seen.batch_s == model.batch_s


def test_full_batches_say_what_each_row_takes_beside_the_device() -> None:
    model = ReplicaModel({1: 0.010, 8: 0.020})
    seen = with_perf(model, {"rows": 1, "runs": [closed(1, 70, 13_000), closed(16, 8 / 0.024, 48_000)]})
    assert seen.batch_s == pytest.approx({1: 0.0105, 8: 0.024})
    assert seen.requests_per_s == pytest.approx(8 / 0.024)
    assert seen.lone_s == pytest.approx(0.013)


def test_fewer_callers_than_two_full_batches_say_nothing_of_them() -> None:
    model = ReplicaModel({1: 0.010, 8: 0.020})
    assert with_perf(model, {"rows": 1, "runs": [closed(15, 100, 48_000)]}) == model


def test_requests_have_the_rows_that_were_sent() -> None:
    assert with_perf(ReplicaModel({8: 0.020}), {"rows": 4, "runs": []}).rows == 4


@pytest.mark.parametrize("text", ["", "[]", "5", "{}", '{"runs": []}', "\xff"])
def test_what_perf_did_not_print_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "perf.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="--perf"):
        read_perf(file)


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "perf.json").write_text(json.dumps({"rows": 1, "runs": []}))
    (tmp_path / "metrics").write_text(AFTER)
    assert read_perf(tmp_path / "perf.json") == {"rows": 1, "runs": []}
    assert read_metrics(str(tmp_path / "metrics")) == AFTER
    with pytest.raises(InputError, match="--metrics"):
        read_metrics(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="--metrics"):
        read_metrics("http://127.0.0.1:1/metrics")
