"""What is sampled is what OpenTelemetry's own samplers would sample."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import propagate
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, TraceIdRatioBased
from opentelemetry.trace import get_current_span

from opara_server.observe import spans
from opara_server.observe.sampling import ALL, Sampling, sampling_of_environment
from opara_server.observe.spans import OtelTracer
from opara_server.observe.tracing import Metadata

METHOD = "/opara.v1.InferenceService/Infer"
SHARE = 0.3
BOUND = TraceIdRatioBased.get_bound_for_rate(SHARE)
PARENT = "b7ad6b7169203331"
TRACES = [f"{number:032x}" for number in (1, BOUND - 1, BOUND, ALL - 1, 7 * ALL + BOUND - 1, 7 * ALL + BOUND)]
TRACEPARENTS = [
    *(f"00-{trace}-{PARENT}-{flags}" for trace in TRACES for flags in ("00", "01", "02", "03", "fe", "ff")),
    f"00-{0:032x}-{PARENT}-00",  # from here on some are none
    f"00-{1:032x}-{0:016x}-00",
    f"00-{1:032x}-{PARENT}-00-more",
    f"00-{1:032x}-{PARENT}-00\n",
    f" 00-{1:032x}-{PARENT}-00 ",
    f"01-{1:032x}-{PARENT}-00-more",
    f"ff-{1:032x}-{PARENT}-00",
    f"00-{10:032X}-{PARENT}-00",
    f"00-{1:032x}-{PARENT}-0",
    "",
]


class Call:
    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Metadata:
        return self._metadata


@pytest.fixture(
    params=[prefix + root for prefix in ("", "parentbased_") for root in ("always_on", "always_off", "traceidratio")]
)
def sampler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Sampler:
    """OpenTelemetry's own, by the variables that are set then."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", request.param)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", str(SHARE))
    return TracerProvider(shutdown_on_exit=False).sampler


@pytest.fixture
def tracer(sampler: Sampler) -> Iterator[OtelTracer]:
    tracer = OtelTracer([], sampling_of_environment())
    yield tracer
    tracer.close()


def samples(sampler: Sampler, trace_id: int, traceparent: str = "") -> bool:
    parent = propagate.get_global_textmap().extract({"traceparent": [traceparent]})
    trace_id = get_current_span(parent).get_span_context().trace_id or trace_id
    return sampler.should_sample(parent, trace_id, METHOD).decision is Decision.RECORD_AND_SAMPLE


@pytest.mark.parametrize("lower", [0, BOUND - 1, BOUND, ALL - 1])
def test_requests_without_a_caller(
    tracer: OtelTracer, sampler: Sampler, lower: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "getrandbits", lambda _bits: lower)
    span = tracer.begin(METHOD, Call(("user-agent", "test")))
    assert (span is not None) == samples(sampler, lower)
    assert span is None or span.context.trace_id == lower * ALL + lower


@pytest.mark.parametrize("lower", [BOUND - 1, BOUND])
def test_requests_with_a_callers_context(
    tracer: OtelTracer, sampler: Sampler, lower: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "getrandbits", lambda _bits: lower)
    for traceparent in TRACEPARENTS:
        span = tracer.begin(METHOD, Call(("user-agent", "test"), ("traceparent", traceparent), ("baggage", "a=1")))
        assert (span is not None) == samples(sampler, lower, traceparent), traceparent


def test_of_several_parents_the_first_counts() -> None:
    tracer = OtelTracer([], Sampling(ALL))
    sampled, other = (("traceparent", f"00-{TRACES[0]}-{PARENT}-0{flag}") for flag in (1, 0))
    assert tracer.begin(METHOD, Call(other, sampled)) is None
    assert tracer.begin(METHOD, Call(sampled, other)) is not None
    tracer.close()


@pytest.mark.parametrize(
    ("name", "argument", "sampling"),
    [
        (None, None, Sampling(ALL)),
        ("", "", Sampling(ALL)),
        ("ALWAYS_OFF", None, Sampling(0, parent_based=False)),
        ("ParentBased_TraceIdRatio", "0.25", Sampling(ALL // 4)),
    ],
)
def test_variables(name: str | None, argument: str | None, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)):
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)
    assert sampling_of_environment() == sampling


@pytest.mark.parametrize("argument", ["", "many", "nan", "-0.1", "1.1"])
def test_a_share_that_is_none_is_ignored(
    argument: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    assert sampling_of_environment() == Sampling(ALL, parent_based=False)
    assert "OTEL_TRACES_SAMPLER_ARG" in caplog.text


def test_a_sampler_that_is_none_is_ignored(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_pigeons")
    assert sampling_of_environment() == Sampling(ALL)
    assert "parentbased_pigeons" in caplog.text
