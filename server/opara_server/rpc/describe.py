"""What the server knows about its models, as messages."""

from __future__ import annotations

from collections.abc import Iterable

from opara_protos.v1 import inference_pb2 as pb
from opara_server.engine.plan import BucketPlan, Candidate
from opara_server.engine.trace import Interval
from opara_server.observe.occupancy import Sample
from opara_server.rpc.wire import spec_message
from opara_server.serving.models import ModelDescription


def status_message(model: ModelDescription) -> pb.ModelStatus:
    state = pb.ModelState.Value(f"MODEL_STATE_{model.state.name}")
    return pb.ModelStatus(name=model.name, state=state, reason=model.told)


def model_message(model: ModelDescription) -> pb.GetModelResponse:
    """A model that is not ready has no plan and no outputs yet."""
    response = pb.GetModelResponse(
        status=status_message(model),
        inputs=map(spec_message, model.inputs),
        outputs=map(spec_message, model.outputs),
        max_rows=model.max_rows,
    )
    if model.plan is not None:
        response.device = model.plan.device
        response.device_name = model.plan.device_name
        response.fallback_reason = model.plan.fallback_reason
        response.buckets.extend(map(_bucket_message, model.plan.buckets))
    return response


def _bucket_message(bucket: BucketPlan) -> pb.Bucket:
    return pb.Bucket(
        batch_size=bucket.batch_size,
        policy=bucket.policy,
        lowering=bucket.lowering,
        operators=bucket.operators,
        streams=bucket.streams,
        synchronisations=bucket.synchronisations,
        measured_us=bucket.measured_us,
        sequential_us=bucket.sequential_us,
        peak_bytes=bucket.peak_bytes,
        candidates=map(_candidate_message, bucket.candidates),
        reused=bucket.reused,
        compact=bucket.compact,
        steady_bytes=bucket.steady_bytes,
    )


def _candidate_message(candidate: Candidate) -> pb.Candidate:
    return pb.Candidate(
        policy=candidate.policy,
        streams=candidate.streams,
        synchronisations=candidate.synchronisations,
        predicted_us=candidate.predicted_us,
        measured_us=candidate.measured_us,
        peak_bytes=candidate.peak_bytes,
        rejected=candidate.rejected,
        compact=candidate.compact,
        lowering=candidate.lowering,
        again_us=candidate.again_us,
    )


def profile_message(samples: Iterable[Sample]) -> pb.ProfileModelResponse:
    return pb.ProfileModelResponse(buckets=map(_sample_message, samples))


def _sample_message(sample: Sample) -> pb.BucketProfile:
    seen = sample.occupancy
    return pb.BucketProfile(
        batch_size=sample.batch_size,
        replays=sample.replays,
        span_us=seen.span_us,
        concurrency=seen.concurrency,
        stream_busy=dict(seen.stream_busy),
        busy_us=dict(seen.busy_us),
        timeline=map(_interval_message, sample.timeline),
        omitted=sample.omitted,
        seconds=sample.seconds,
    )


def _interval_message(interval: Interval) -> pb.Interval:
    return pb.Interval(name=interval.name, stream=interval.stream, start_us=interval.start_us, end_us=interval.end_us)
