"""Records in pipes: nobody ever waits to write one, and every error arrives as what it was."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opara_server.observe.tracing import SpanContext
from opara_server.serving import errors
from opara_server.workers.records import (
    ATOMIC_BYTES,
    COMPLETION,
    ERRORS,
    STATUS,
    SUBMISSION,
    TEXT_BYTES,
    Pipe,
    error_of,
    most_at_once,
    pipe,
    read,
    read_span,
    write_span,
)


@pytest.fixture
def made() -> Iterator[Pipe]:
    made = pipe()
    yield made
    for descriptor in made:
        os.close(descriptor)


@pytest.mark.parametrize("chunk", [1, ATOMIC_BYTES // SUBMISSION.size // 2 + 1, ATOMIC_BYTES // SUBMISSION.size])
def test_a_pipe_has_room_for_all_that_may_be_in_it(made: Pipe, chunk: int) -> None:
    os.set_blocking(made.writes, False)
    records = 3 * most_at_once(made.writes)
    for begin in range(0, records, chunk):  # raises BlockingIOError where it is full
        some = range(begin, min(begin + chunk, records))
        data = b"".join(SUBMISSION.pack(place, 0, 1, 0.0, 0, 0) for place in some)
        assert os.write(made.writes, data) == len(data)
    places: list[int] = []
    while len(places) < records:
        places += [record[0] for record in SUBMISSION.iter_unpack(read(made.reads, SUBMISSION) or b"")]
    assert places == list(range(len(places)))


def test_the_smallest_of_several_pipes_counts(made: Pipe) -> None:
    small = pipe()
    fcntl.fcntl(small.writes, fcntl.F_SETPIPE_SZ, 4096)
    fewest = most_at_once(small.writes)
    assert most_at_once(made.writes, small.reads) == most_at_once(small.reads, made.writes) == fewest
    for descriptor in small:
        os.close(descriptor)


def test_a_pipe_that_may_not_be_large_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = fcntl.fcntl

    def unprivileged(fd: int, command: int, *argument: Any) -> Any:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError
        return real(fd, command, *argument)

    monkeypatch.setattr(fcntl, "fcntl", unprivileged)
    made = pipe()
    (told,) = caplog.records
    assert vars(told)["most_requests"] == most_at_once(made.writes) > 0
    for descriptor in made:
        os.close(descriptor)


def test_a_pipe_has_room_for_completions_in_whatever_chunks(made: Pipe) -> None:
    os.set_blocking(made.writes, False)
    records, chunk = most_at_once(made.writes), ATOMIC_BYTES // COMPLETION.size // 2 + 1
    for begin in range(0, records, chunk):
        count = min(chunk, records - begin)
        assert os.write(made.writes, COMPLETION.pack(begin, 0, 0) * count) == count * COMPLETION.size


def test_the_end_of_a_pipe_is_no_record() -> None:
    reads, writes = pipe()
    os.write(writes, COMPLETION.pack(7, 0, 0))
    os.close(writes)
    assert [read(reads, COMPLETION), read(reads, COMPLETION)] == [COMPLETION.pack(7, 0, 0), b""]
    os.close(reads)


def test_every_error_arrives_as_what_it_was() -> None:
    every = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ServingError)}
    assert set(ERRORS) == every - {errors.ServingError}
    for kind in ERRORS:
        error = kind() if kind is errors.InternalError else kind("as it was said")
        arrived = error_of(STATUS[kind], str(error))
        assert type(arrived) is kind
        assert str(arrived) == str(error)


@given(
    st.builds(SpanContext, st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.text("ab=,@é", max_size=600)),
    st.integers(0, 64),
)
@example(SpanContext(1, 1, "a" * (TEXT_BYTES - 26)), 3)  # the longest state
def test_a_span_is_read_as_it_was_written(span: SpanContext, at: int) -> None:
    places = memoryview(bytearray(b"x" * (at + TEXT_BYTES)))
    write_span(places, at, span)
    fits = len(span.state.encode()) <= TEXT_BYTES - 26
    assert read_span(places, at) == (span if fits else span._replace(state=""))
    assert bytes(places[:at]) == b"x" * at
