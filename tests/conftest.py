"""For all tests, and the servers that they start."""

from __future__ import annotations

import os

# Before torch is loaded. OpenMP's threads spin while they wait for each other: with more of them than idle processors,
# as with several servers beside a test run, milliseconds become seconds. The tests' models need no more than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
