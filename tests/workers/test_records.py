"""Records in pipes: nobody ever waits to write one, and every error arrives as what it was."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from opara_server.serving import errors
from opara_server.workers.records import (
    ATOMIC_BYTES,
    COMPLETION,
    ERRORS,
    STATUS,
    SUBMISSION,
    Pipe,
    error_of,
    most_at_once,
    pipe,
    read,
)


@pytest.fixture
def made() -> Iterator[Pipe]:
    made = pipe()
    yield made
    for descriptor in made:
        os.close(descriptor)


def test_a_pipe_has_room_for_all_that_may_be_in_it(made: Pipe) -> None:
    os.set_blocking(made.writes, False)
    for place in range(3 * most_at_once(made.writes)):  # raises BlockingIOError where it is full
        os.write(made.writes, SUBMISSION.pack(place, 0, 1, 0.0, 0, 0))
    places: list[int] = []
    while len(places) < 3 * most_at_once(made.writes):
        places += [record[0] for record in SUBMISSION.iter_unpack(read(made.reads, SUBMISSION))]
    assert places == list(range(len(places)))


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
