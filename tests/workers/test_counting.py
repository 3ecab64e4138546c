"""What workers count and the engine tells of: each request once, whatever becomes of the processes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from opara_server.observe.metrics import UNKNOWN_MODEL, Metrics
from opara_server.workers.counting import CODES, Absorbed, WorkerCounts
from opara_server.workers.region import COUNTS_BYTES

ROWS = {"double": 1, "triple": 2}


def known() -> Metrics:
    metrics = Metrics()
    for name in ROWS:
        metrics.add_model(name)
    return metrics


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def test_all_is_counted_once_however_often_it_is_read() -> None:
    shared, counts, metrics = memoryview(bytearray(COUNTS_BYTES)), WorkerCounts(), known()
    counts.attach(shared, ROWS)
    absorbed = Absorbed(shared)
    metrics.on_read(lambda: absorbed.absorb(metrics, ROWS))
    for _ in range(3):
        counts.receive("double")
        counts.request("double", "OK", 0.003)
        assert sample(metrics, "opara_requests_total", model="double", code="OK") >= 1
    counts.refuse("triple", "RESOURCE_EXHAUSTED", 0.0)
    counts.refuse("nobody", "NOT_FOUND", 0.0)
    assert sample(metrics, "opara_requests_total", model="double", code="OK") == 3
    assert sample(metrics, "opara_request_seconds_bucket", model="double", le="0.0025") == 0
    assert sample(metrics, "opara_request_seconds_bucket", model="double", le="0.005") == 3
    assert abs(sample(metrics, "opara_request_seconds_sum", model="double") - 0.009) < 1e-6
    assert sample(metrics, "opara_rejected_total", model="triple", reason="queue_full") == 1
    assert sample(metrics, "opara_request_seconds_count", model="triple") == 0
    assert sample(metrics, "opara_requests_total", model=UNKNOWN_MODEL, code="NOT_FOUND") == 1


def test_an_exemplar_is_told_of_once() -> None:
    shared, counts, metrics = memoryview(bytearray(COUNTS_BYTES)), WorkerCounts(), known()
    counts.attach(shared, ROWS)
    absorbed, trace_id = Absorbed(shared), (1 << 127) + 7
    for seconds, code in ((0.003, "OK"), (0.0, "UNAVAILABLE"), (0.004, "OK"), (20.0, "INTERNAL")):
        counts.request("double", code, seconds)
        counts.exemplar("double", code, seconds, trace_id)
    latency = metrics.request_seconds.labels("double")
    absorbed.absorb(metrics, ROWS)
    found = [exemplar for (exemplar,) in filter(None, latency.exemplars())]
    assert [exemplar.value for exemplar in found] == [0.004, 20.0]
    assert {exemplar.labels["trace_id"] for exemplar in found} == {f"{trace_id:032x}"}
    latency.exemplify(0.0045, 1)
    counts.request("double", "OK", 0.0)  # something is new, but no exemplar
    absorbed.absorb(metrics, ROWS)
    assert [exemplar.value for (exemplar,) in filter(None, latency.exemplars())] == [0.0045, 20.0]
    counts.detach()
    counts.exemplar("double", "OK", 0.003, trace_id)  # nobody hears of it


def test_an_exemplar_that_is_being_written_is_none() -> None:
    shared, counts, metrics = memoryview(bytearray(COUNTS_BYTES)), WorkerCounts(), known()
    counts.attach(shared, ROWS)
    counts.request("double", "OK", 0.003)
    counts.exemplar("double", "OK", 0.003, 7)
    numbers = shared.cast("Q")
    (at,) = [index for index in range(128, 256) if numbers[index] == 3_000_000 and numbers[index + 2] == 7]
    numbers[at - 1] = 0  # when
    Absorbed(shared).absorb(metrics, ROWS)
    assert not any(metrics.request_seconds.labels("double").exemplars())


def answered(metrics: Metrics, model: str) -> float:
    return sum(sample(metrics, "opara_requests_total", model=model, code=code) for code in CODES)


def received(metrics: Metrics, model: str) -> float:
    return sample(metrics, "opara_received_total", model=model)


def test_what_is_counted_without_an_engine_goes_to_the_next_one() -> None:
    counts = WorkerCounts()
    counts.refuse("double", "UNAVAILABLE", 0.0)
    first, second = (memoryview(bytearray(COUNTS_BYTES)) for _ in range(2))
    counts.attach(first, ROWS)
    counts.detach()
    counts.refuse("double", "UNAVAILABLE", 0.0)
    counts.attach(second, ROWS)
    for shared, expected in ((first, {UNKNOWN_MODEL: 1}), (second, {"double": 1})):
        metrics = known()
        Absorbed(shared).absorb(metrics, ROWS)
        for name in (*ROWS, UNKNOWN_MODEL):
            assert sample(metrics, "opara_requests_total", model=name, code="UNAVAILABLE") == expected.get(name, 0)
            assert received(metrics, name) == expected.get(name, 0)


def test_what_is_in_flight_when_an_engine_goes_is_of_the_next_one() -> None:
    counts = WorkerCounts()
    first, second = (memoryview(bytearray(COUNTS_BYTES)) for _ in range(2))
    counts.attach(first, ROWS)
    for model, code in (("double", "OK"), ("double", ""), ("triple", ""), ("triple", "")):
        counts.receive(model)
        if code:
            counts.request(model, code, 0.0)
    counts.detach()
    counts.detach()
    counts.request("double", "UNAVAILABLE", 0.0)
    counts.attach(second, {"triple": 1, "double": 2})  # in an order of its own
    counts.request("triple", "UNAVAILABLE", 0.0)
    metrics = known()
    absorbed = Absorbed(second)
    absorbed.absorb(metrics, {"triple": 1, "double": 2})
    assert {name: (received(metrics, name), answered(metrics, name)) for name in ROWS} == {
        "double": (1, 1),
        "triple": (2, 1),
    }


def test_what_has_come_and_was_not_answered_is_lost_with_the_worker() -> None:
    shared, counts, metrics = memoryview(bytearray(COUNTS_BYTES)), WorkerCounts(), known()
    counts.attach(shared, ROWS)
    absorbed = Absorbed(shared)
    for index in range(10):
        counts.receive("double")
        if index % 3:
            counts.request("double", "OK", 0.003)
        absorbed.absorb(metrics, ROWS)
        assert received(metrics, "double") == index + 1
    counts.refuse("nobody", "NOT_FOUND", 0.0)
    counts.receive("triple")
    absorbed.settle(metrics, ROWS)
    assert sample(metrics, "opara_requests_total", model="double", code="OK") == 6
    assert sample(metrics, "opara_requests_total", model="double", code="UNAVAILABLE") == 4
    for name, number in (("double", 10), ("triple", 1), (UNKNOWN_MODEL, 1)):
        assert (received(metrics, name), answered(metrics, name)) == (number, number)
    assert sample(metrics, "opara_request_seconds_count", model="double") == 6
    assert sample(metrics, "opara_rejected_total", model="double", reason="unavailable") == 0


class Way(RuleBasedStateMachine):
    """A worker that outlives engines: whatever happens when, what is known of each engine's time balances."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = WorkerCounts()
        self.open: list[str] = []
        self.absorbed: Absorbed | None = None
        self.rows: dict[str, int] = {}

    @rule(order=st.permutations([*ROWS]))
    def engine(self, order: list[str]) -> None:
        self.counts.detach()
        self.rows = {name: 1 + index for index, name in enumerate(order)}
        shared = memoryview(bytearray(COUNTS_BYTES))
        self.absorbed, self.metrics = Absorbed(shared), known()
        self.counts.attach(shared, self.rows)

    @rule()
    def lose(self) -> None:
        self.counts.detach()
        self.absorbed = None

    @rule(model=st.sampled_from([*ROWS]))
    def come(self, model: str) -> None:
        if self.rows:  # before, there are no models
            self.counts.receive(model)
            self.open.append(model)

    @rule(model=st.sampled_from([*ROWS, "nobody"]))
    def refuse(self, model: str) -> None:
        self.counts.refuse(model, "NOT_FOUND", 0.0)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.counts.request(self.open.pop(data.draw(st.integers(0, len(self.open) - 1))), "OK", 0.0)

    @invariant()
    def what_has_come_is_answered_or_open(self) -> None:
        if self.absorbed is None:
            return
        self.absorbed.absorb(self.metrics, self.rows)
        for name in (*ROWS, UNKNOWN_MODEL):
            assert received(self.metrics, name) == answered(self.metrics, name) + self.open.count(name)

    def teardown(self) -> None:
        if self.absorbed is not None:
            self.absorbed.settle(self.metrics, self.rows)
            assert all(received(self.metrics, n) == answered(self.metrics, n) for n in (*ROWS, UNKNOWN_MODEL))


TestWay = Way.TestCase
TestWay.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
