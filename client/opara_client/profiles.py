"""How busy a model's streams were in traced replays, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opara_protos.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Interval:
    """One kernel on one stream (on a CPU: one operator); µs from the start of its replay."""

    name: str
    stream: int
    start_us: float
    end_us: float


@dataclass(frozen=True, slots=True)
class BucketProfile:
    """Of one batch size, means over ``replays`` traced ones.

    ``span_us``: from the first operator's start to the last one's end. ``stream_busy``: per stream the share of it for
    which it was busy. ``busy_us``: for how long exactly so many streams were busy, 0 included. ``concurrency``: busy
    streams, averaged while one is. ``timeline``: the last of the replays, in order of starts, without its latest
    ``omitted`` intervals, where there are very many. ``seconds``: what the trace took, for which requests waited.
    """

    batch_size: int
    replays: int
    span_us: float
    concurrency: float
    stream_busy: Mapping[int, float]
    busy_us: Mapping[int, float]
    timeline: tuple[Interval, ...]
    omitted: int
    seconds: float


def decode_profile(response: pb.ProfileModelResponse) -> tuple[BucketProfile, ...]:
    return tuple(map(_decode_bucket, response.buckets))


def _decode_bucket(bucket: pb.BucketProfile) -> BucketProfile:
    return BucketProfile(
        batch_size=bucket.batch_size,
        replays=bucket.replays,
        span_us=bucket.span_us,
        concurrency=bucket.concurrency,
        stream_busy=dict(sorted(bucket.stream_busy.items())),
        busy_us=dict(sorted(bucket.busy_us.items())),
        timeline=tuple(Interval(i.name, i.stream, i.start_us, i.end_us) for i in bucket.timeline),
        omitted=bucket.omitted,
        seconds=bucket.seconds,
    )
