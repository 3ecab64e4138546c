from __future__ import annotations

from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from opara_client.perf_histogram import ERROR, Histogram, merged

DURATIONS = st.lists(st.integers(0, 2**50), min_size=1, max_size=200)


def histogram(values: list[int]) -> Histogram:
    result = Histogram()
    for value in values:
        result.record(value)
    return result


@given(DURATIONS, st.integers(1, 1000))
def test_a_percentile_is_the_nearest_rank_and_at_most_the_error_above_it(values: list[int], permille: int) -> None:
    exact = sorted(values)[max(1, ceil(len(values) * permille / 1000)) - 1]
    found = histogram(values).percentile(permille / 10)
    assert exact <= found <= exact * (1 + ERROR)
    assert ERROR < 0.001


@given(st.lists(DURATIONS, max_size=4))
def test_merged_is_the_histogram_of_all_values(parts: list[list[int]]) -> None:
    assert merged(map(histogram, parts)) == histogram([value for part in parts for value in part])


@given(DURATIONS)
def test_count_mean_and_maximum_are_exact(values: list[int]) -> None:
    found = histogram(values)
    assert (found.count, found.mean, found.largest) == (len(values), sum(values) / len(values), max(values))
    assert found.percentile(100) == max(values)
    assert sum(count for _, count in found.buckets()) == len(values)


def test_a_share_that_is_no_binary_fraction_is_not_rounded_up() -> None:
    assert histogram(list(range(1, 41_001))).percentile(99.9) == 40_959


def test_of_no_values_all_is_0() -> None:
    assert (Histogram().count, Histogram().mean, Histogram().percentile(99.9)) == (0, 0, 0)


def test_a_value_below_0_counts_as_0() -> None:
    assert histogram([-5]) == histogram([0])
