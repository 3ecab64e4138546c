"""The options of ``opara-client capacity``."""

from __future__ import annotations

import argparse
from pathlib import Path

from opara_client.capacity_balancing import BALANCERS
from opara_client.option_types import count, each, not_negative, number, positive

_percent = number(lambda value: 0 < value < 100, "a number between 0 and 100")
_growth = number(lambda value: value >= 1, "a number not below 1")


def _zones(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"expected a whole number above 1, got {text}")
    return value


def _batch(text: str) -> tuple[int, float]:
    size, equals, milliseconds = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected SIZE=MS,..., got {text}")
    return count(size), positive(milliseconds)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="whose metrics --metrics has")

    load = parser.add_argument_group("load and objective")
    load.add_argument(
        "--rate", type=each(positive), required=True, metavar="N,...", help="requests a second, at the busiest time"
    )
    load.add_argument("--slo-ms", type=positive, required=True, metavar="MS", help="latency that callers allow")
    load.add_argument(
        "--percentile",
        type=_percent,
        default=99.0,
        metavar="X",
        help="X %% of the requests are to be answered within --slo-ms; default: %(default)g",
    )
    load.add_argument(
        "--burst", type=count, default=1, metavar="N", help="so many requests come at once; default: %(default)s"
    )
    load.add_argument(
        "--balancer",
        choices=list(BALANCERS),
        default="two-choices",
        help="least-loaded: HAProxy's leastconn; two-choices: Envoy's LEAST_REQUEST; round-robin: nginx, one client of "
        "a name; random: many such clients; default: %(default)s",
    )

    replica = parser.add_argument_group("a replica", "what was measured of one; a number given here is taken instead")
    replica.add_argument(
        "--metrics",
        nargs="+",
        default=(),
        metavar="FILE or URL",
        help="its /metrics after a load, or before and after one: with both also the processor time of a request, "
        "which is its front's on a GPU",
    )
    replica.add_argument("--perf", type=Path, metavar="FILE", help="from opara-client perf --concurrency 1,... --json")
    replica.add_argument("--batch-ms", type=each(_batch), metavar="SIZE=MS,...", help="how long batches take")
    replica.add_argument(
        "--front-us", type=not_negative, metavar="US", help="of one thread for each request, beside the device"
    )
    replica.add_argument(
        "--base-ms", type=not_negative, metavar="MS", help="of a lone request, what is neither front nor batch"
    )
    replica.add_argument("--rows", type=count, metavar="N", help="of a request")
    replica.add_argument(
        "--variation",
        type=not_negative,
        metavar="X",
        help="of batches of one size: standard deviation of their times over the mean; default: 0",
    )
    replica.add_argument(
        "--queue-rows", type=count, metavar="N", help="as max_queue_rows of model.toml; default: the server's"
    )
    replica.add_argument(
        "--queue-delay-us", type=not_negative, metavar="US", help="as max_queue_delay_us of model.toml; default: 0"
    )

    room = parser.add_argument_group("head-room")
    room.add_argument(
        "--zones", type=_zones, default=3, metavar="N", help="over which replicas are spread; default: %(default)s"
    )
    room.add_argument(
        "--growth",
        type=_growth,
        default=1.25,
        metavar="X",
        help="of the load, until replicas that the autoscaler adds serve; default: %(default)g",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the simulation; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON")
