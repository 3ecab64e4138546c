from __future__ import annotations

import pytest

from opara_server.workers.restarts import Restarts


def test_it_waits_longer_each_time_and_gives_up_but_not_after_a_good_time() -> None:
    now = [0.0]
    restarts = Restarts(lambda: now[0])
    waits: list[float] = []
    while (wait_s := restarts.wait_s()) is not None:
        waits.append(wait_s)
        restarts.began()
    assert waits == pytest.approx([0.1, 0.4, 1.6, 6.4, 10.0, 10.0])
    restarts.began()
    now[0] += 60.0
    assert restarts.wait_s() == waits[0]
