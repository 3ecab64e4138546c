"""[batching] of a model.toml: what is refused, and what becomes of the rest."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from pydantic import ValidationError

from opara_server.model_config import ModelConfig
from opara_server.serving.limits import Limits

MODEL = {
    "source": "python:package.module:factory",
    "batch_sizes": [1, 8],
    "inputs": [{"name": "x", "dtype": "float32", "shape": [2]}],
}


def config(**batching: Any) -> ModelConfig:
    return ModelConfig.model_validate(MODEL | {"batching": batching})


def limits(**batching: Any) -> Limits:
    return Limits.of(config(**batching), (1, 8))


def test_defaults() -> None:
    assert limits() == Limits((1, 8), max_rows=64, max_queue_rows=512)
    assert limits().timeout_s(0) == inf
    assert config().batching.weight == 1.0


def test_everything_set() -> None:
    made = limits(
        max_queue_delay_us=500,
        preferred_sizes=[4, 2],
        max_rows=10,
        max_queue_rows=100,
        priority_levels=3,
        default_priority=2,
        priority_queue_rows=[100, 20, 10],
        queue_timeout_us=3000,
        allow_timeout_override=False,
    )
    assert made == Limits((1, 8), 10, 100, 5e-4, (2, 4), (100, 20, 10), 2, 3e-3, timeout_override=False)


def test_levels_without_limits_of_their_own() -> None:
    made = limits(priority_levels=2, max_queue_rows=100)
    assert made.level_rows == (100, 100)
    assert [made.level(priority) for priority in (0, 1, 2, 3)] == [2, 1, 2, 2]  # the lowest is the default


@pytest.mark.parametrize(
    ("batching", "message"),
    [
        ({"preferred_sizes": [9]}, "9 of preferred_sizes is more than the largest batch size 8"),
        ({"preferred_sizes": [4, 4]}, "the same size twice"),
        ({"preferred_sizes": [0]}, "greater than 0"),
        ({"priority_levels": 0}, "greater than or equal to 1"),
        ({"default_priority": 2}, "default_priority 2 is beyond priority_levels 1"),
        ({"priority_queue_rows": [64, 64]}, "priority_queue_rows has 2 numbers, priority_levels is 1"),
        ({"priority_levels": 2, "priority_queue_rows": [64, 63]}, "63 of priority_queue_rows is less than max_rows 64"),
        ({"queue_timeout_us": -1}, "greater than or equal to 0"),
        ({"weight": 0}, "greater than 0"),
    ],
)
def test_what_does_not_fit_is_refused(batching: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**batching)
