"""For all tests, and the servers that they start."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Before torch is loaded. OpenMP's threads spin while they wait for each other: with more of them than idle processors,
# as with several servers beside a test run, milliseconds become seconds. The tests' models need no more than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes is the machine's affair. The same examples in every run: what fails, fails everywhere.
# ``pytest --hypothesis-profile=search`` tries others.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("same", settings.get_profile("search"), derandomize=True)
settings.load_profile("same")
