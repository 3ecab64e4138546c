"""The options of ``opara-client perf``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from opara_client.option_types import count, each, not_negative, positive
from opara_client.perf_arrivals import Spacing


def add_options(parser: argparse.ArgumentParser, protocols: Iterable[str]) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--protocol",
        choices=list(protocols),
        default="opara",
        help="opara: opara.v1; oip: the Open Inference Protocol, as Triton, KServe and MLServer speak it; "
        "default: %(default)s",
    )

    load = parser.add_argument_group("load", "one run for each value given to --concurrency or --rate")
    pace = load.add_mutually_exclusive_group()
    pace.add_argument(
        "--concurrency",
        type=each(count),
        default=(1,),
        metavar="N,...",
        help="closed loop: N callers, each of which waits for its answer before it asks again; default: 1",
    )
    pace.add_argument(
        "--rate",
        type=each(positive),
        metavar="N,...",
        help="open loop: N requests a second, whether or not those before are answered",
    )
    load.add_argument(
        "--spacing",
        type=Spacing,
        choices=list(Spacing),
        default=Spacing.POISSON,
        help="of the open loop's requests; default: %(default)s",
    )
    load.add_argument(
        "--burst", type=count, default=1, metavar="N", help="so many requests are due at once; default: %(default)s"
    )
    load.add_argument(
        "--max-in-flight",
        type=count,
        default=1024,
        metavar="N",
        help="an open loop holds back what is due beyond N unanswered requests; default: %(default)s",
    )
    load.add_argument("--seed", type=int, default=0, metavar="N", help="of the spacing; default: %(default)s")
    load.add_argument(
        "--processes", type=count, default=1, metavar="N", help="which send the load together; default: %(default)s"
    )
    load.add_argument("--connections", type=count, default=4, metavar="N", help="of each process; default: %(default)s")
    load.add_argument(
        "--warm-up", type=not_negative, default=1.0, metavar="SECONDS", help="not measured; default: %(default)g"
    )
    load.add_argument(
        "--duration", type=positive, default=10.0, metavar="SECONDS", help="measured; default: %(default)g"
    )

    requests = parser.add_argument_group("requests")
    requests.add_argument(
        "--input",
        dest="inputs",
        action="append",
        default=[],
        metavar="NAME=@FILE.npy or @FILE.npz",
        help="cut into requests of --rows rows, which take turns; the other inputs are random, in their range",
    )
    requests.add_argument("--rows", type=count, default=1, metavar="N", help="of a request; default: %(default)s")
    requests.add_argument(
        "--payloads",
        type=count,
        default=8,
        metavar="N",
        help="different requests, which take turns, where all inputs are random; default: %(default)s",
    )
    requests.add_argument(
        "--shape",
        dest="shapes",
        action="append",
        default=[],
        metavar="NAME=SIZE,...",
        help="of a random input, without the batch dimension, where the model leaves it open",
    )
    requests.add_argument(
        "--check",
        action="store_true",
        help="compare the values of every answer with those of the first to the same request; shapes always are",
    )
    requests.add_argument(
        "--tolerance",
        type=not_negative,
        default=0.0,
        metavar="X",
        help="of --check: the largest ||output - first|| / ||first||, as rounding may depend on how requests are "
        "batched; default: %(default)g, equality",
    )

    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="save a plot of latency by percentile there (SVG, PNG, PDF)"
    )
