"""Whether an operator is given several of PyTorch's threads."""

from __future__ import annotations

import pytest

from opara_server.engine.intra_op import Patience, faster

ALONE = [9.0, 1.0, 1.1, 1.2]  # seconds; the first is to warm up


@pytest.mark.parametrize(
    ("together", "chosen"),
    [
        ([9.0, 0.5, 0.6, 0.7], 4),
        ([0.1, 0.95, 1.0, 1.1], 1),  # as fast, but for noise
        ([9.0, 0.5, 1.1, 1.2], 1),  # once, by chance
        ([9.0, 0.9, 0.9, 0.9], 1),  # the others were held up, by chance
        ([9.0, 2.0, 2.1, 2.2], 1),
    ],
    ids=["faster", "as fast", "fast once", "never fast", "slower"],
)
def test_several_threads_must_be_worth_their_cores(together: list[float], chosen: int) -> None:
    def seconds_with(threads: int, patience: Patience | None) -> list[float]:
        assert (patience is None) == (threads == 1)
        return ALONE if threads == 1 else together

    assert faster(4, seconds_with) == chosen
