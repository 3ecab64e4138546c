"""Answers of streams that wait for their clients, of all streams of a process together.

A client that sends requests and does not take the answers makes the server keep them. One stream keeps no more than it
has in flight; many streams are bounded here, by flow control: nobody is refused, and no answer is lost.
"""

from __future__ import annotations

import logging
import threading

from opara_server.config import STREAM_BACKLOG_BYTES

log = logging.getLogger(__name__)


class Backlog:
    """Counts answers that wait behind another one of their stream: that one is gRPC's, as the one of a unary call is.

    From ``most_bytes`` on a stream reads its next request only once all its answers have left: then no stream adds to
    what waits, but with requests that it had in flight already, and these the models' queues bound. Any thread.
    """

    def __init__(self, most_bytes: int = STREAM_BACKLOG_BYTES) -> None:
        self._most_bytes = most_bytes
        self._nbytes = 0
        self._told = False
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Of answers that wait."""
        return self._nbytes

    def in_flight(self, most: int) -> int:
        """How many requests a stream may have in flight now, where it may have ``most`` otherwise."""
        return most if self._nbytes < self._most_bytes else 1

    def change(self, nbytes: int) -> None:
        """So many more wait, or fewer."""
        with self._lock:
            self._nbytes += nbytes
            tell = self._nbytes >= self._most_bytes and not self._told
            if tell or self._nbytes <= self._most_bytes // 2:  # so that it is not told over and over
                self._told = tell
        if tell:
            log.warning(
                "answers wait for slow readers of streams: until they are taken streams have one request in flight",
                extra={"bytes": self._nbytes, "most_bytes": self._most_bytes},
            )
