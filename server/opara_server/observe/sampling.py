"""Which requests are traced: as OpenTelemetry's own samplers decide, by the same variables, but without calling them.

Most requests are not sampled: what one of those costs is a random number.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

log = logging.getLogger(__name__)

ALL = 1 << 64  # values of the lower half of a trace's id, which decides
_DEFAULT = "parentbased_always_on"
_PARENT_BASED = "parentbased_"


@dataclass(frozen=True, slots=True)
class Sampling:
    """A trace is sampled if the lower half of its id is below ``bound``. ``parent_based``: that is for requests without
    a caller's context; others are sampled if the caller is."""

    bound: int
    parent_based: bool = True


def sampling_of_environment() -> Sampling:
    """OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG. What cannot be used is ignored, with a warning, as OpenTelemetry
    wants it."""
    name = (os.environ.get("OTEL_TRACES_SAMPLER") or _DEFAULT).lower()
    match name.removeprefix(_PARENT_BASED):
        case "always_on":
            bound = ALL
        case "always_off":
            bound = 0
        case "traceidratio":
            bound = round(_share() * ALL)
        case _:
            log.warning("OTEL_TRACES_SAMPLER: there is no sampler %r, %s is used", name, _DEFAULT)
            return Sampling(ALL)
    return Sampling(bound, parent_based=name.startswith(_PARENT_BASED))


def _share() -> float:
    text = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "")
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if 0.0 <= share <= 1.0:
        return share
    log.warning("OTEL_TRACES_SAMPLER_ARG: %r is no number from 0 to 1, 1 is used", text)
    return 1.0
