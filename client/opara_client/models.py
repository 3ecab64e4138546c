"""What the server says about its models, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from opara_client.tensors import dtype_name
from opara_protos.v1 import inference_pb2 as pb


class ModelState(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"
    UNLOADED = "UNLOADED"


LOG_SAYS_MORE = "the server's log says more"
_STATES: dict[int, ModelState] = {
    pb.MODEL_STATE_LOADING: ModelState.LOADING,
    pb.MODEL_STATE_READY: ModelState.READY,
    pb.MODEL_STATE_FAILED: ModelState.FAILED,
    pb.MODEL_STATE_UNLOADED: ModelState.UNLOADED,
}


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """``reason``: of what kind the failure of a model is that is FAILED; else empty."""

    name: str
    state: ModelState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """``shape`` starts with -1, the batch dimension; ``dtype`` as in ``"float32"``, ``"bfloat16"``.

    ``low`` <= values < ``high``; the server refuses integers outside. None: any.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One schedule of one lowering measured for a bucket.

    ``measured_us``: by the search. ``again_us``: as a graph that was captured to serve, beside the sequential one; 0
    where it was not. ``rejected``: why it was refused whatever it measured; else empty. ``compact``: its streams were
    reduced to what its order needs.
    """

    policy: str
    streams: int
    synchronisations: int
    predicted_us: float
    measured_us: float
    peak_bytes: int
    rejected: str
    compact: bool
    lowering: str
    again_us: float = 0.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """The plan that runs batches of up to ``batch_size`` rows. ``reused``: it came from the server's cache.

    ``compact``: its streams were reduced to what its order needs. ``peak_bytes``: of activations in a run.
    ``steady_bytes``: what its graph keeps while idle, beyond those of larger batch sizes.
    """

    batch_size: int
    policy: str
    lowering: str
    operators: int
    streams: int
    synchronisations: int
    measured_us: float
    sequential_us: float
    peak_bytes: int
    candidates: tuple[Candidate, ...]
    reused: bool
    compact: bool
    steady_bytes: int

    @property
    def speedup(self) -> float:
        """Over the sequential graph of ATen operators; 1.0 where nothing was measured."""
        return self.sequential_us / self.measured_us if self.measured_us > 0 else 1.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """``max_rows``: the most rows one request may carry. ``buckets``: ascending; empty until the model is READY.

    ``fallback_reason``: why the model runs as one sequential graph, where its operators could not be had; else empty.
    ``reason``: as in ModelStatus.
    """

    name: str
    state: ModelState
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str
    device_name: str
    max_rows: int
    buckets: tuple[Bucket, ...]
    fallback_reason: str
    reason: str = ""

    @property
    def why_not_ready(self) -> str:
        """For people, of a model that is not READY."""
        if self.state is ModelState.UNLOADED:
            return "until it is loaded again"
        return f"{self.reason}: {LOG_SAYS_MORE}" if self.reason else LOG_SAYS_MORE


def decode_status(status: pb.ModelStatus) -> ModelStatus:
    return ModelStatus(status.name, _STATES.get(status.state, ModelState.UNSPECIFIED), status.reason)


def decode_model(response: pb.GetModelResponse) -> ModelInfo:
    status = decode_status(response.status)
    return ModelInfo(
        name=status.name,
        state=status.state,
        inputs=tuple(_decode_spec(spec) for spec in response.inputs),
        outputs=tuple(_decode_spec(spec) for spec in response.outputs),
        device=response.device,
        device_name=response.device_name,
        max_rows=response.max_rows,
        buckets=tuple(_decode_bucket(bucket) for bucket in response.buckets),
        fallback_reason=response.fallback_reason,
        reason=status.reason,
    )


def _decode_spec(spec: pb.TensorSpec) -> TensorSpec:
    return TensorSpec(
        name=spec.name,
        dtype=dtype_name(spec.data_type),
        shape=tuple(spec.shape),
        low=spec.low if spec.HasField("low") else None,
        high=spec.high if spec.HasField("high") else None,
    )


def _decode_bucket(bucket: pb.Bucket) -> Bucket:
    return Bucket(
        batch_size=bucket.batch_size,
        policy=bucket.policy,
        lowering=bucket.lowering,
        operators=bucket.operators,
        streams=bucket.streams,
        synchronisations=bucket.synchronisations,
        measured_us=bucket.measured_us,
        sequential_us=bucket.sequential_us,
        peak_bytes=bucket.peak_bytes,
        candidates=tuple(_decode_candidate(candidate) for candidate in bucket.candidates),
        reused=bucket.reused,
        compact=bucket.compact,
        steady_bytes=bucket.steady_bytes,
    )


def _decode_candidate(candidate: pb.Candidate) -> Candidate:
    return Candidate(
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
