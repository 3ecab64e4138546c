"""``opara-client perf``: loads a server and reports latency percentiles, throughput and failures."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from importlib import import_module

from opara_client.channel import open_channel
from opara_client.errors import translated
from opara_client.inputs import InputError
from opara_client.perf_answers import check_first
from opara_client.perf_arrivals import Arrivals
from opara_client.perf_load import Closed, Load, Open, Payload
from opara_client.perf_oip import OipProtocol
from opara_client.perf_opara import OparaProtocol
from opara_client.perf_payloads import Wanted, batches, make_payloads, parse_shapes, read_files
from opara_client.perf_processes import run_load
from opara_client.perf_protocol import Protocol
from opara_client.perf_report import lines, make_report
from opara_client.perf_sender import CHANNEL_OPTIONS
from opara_client.security import Bearer, Tls
from opara_client.security_options import security

PROTOCOLS: dict[str, Protocol] = {"opara": OparaProtocol(), "oip": OipProtocol()}


def perf(args: argparse.Namespace) -> int:
    """Runs what the options ask for and prints the reports: 1 if an answer was wrong or a run had none, else 0.

    Raises InputError for wrong usage, OparaError where the server cannot be asked at all.
    """
    # Found missing before the measurement, not after it.
    plot = import_module("opara_client.perf_plot").plot if args.plot else None
    protocol = PROTOCOLS[args.protocol]
    tls, bearer = security(args)
    payloads = _payloads(protocol, args, tls, bearer)
    reports = []
    for pace in _paces(args):
        load = Load(
            target=args.target,
            protocol=protocol,
            payloads=payloads,
            pace=pace,
            connections=args.connections,
            warm_up_s=args.warm_up,
            duration_s=args.duration,
            timeout_s=args.timeout,
            tolerance=args.tolerance if args.check else None,
            tls=tls,
            bearer=bearer,
        )
        reports.append(make_report(load, args.processes, run_load(load, args.processes)))
    if args.json:
        asked = {"target": args.target, "protocol": args.protocol, "model": args.model, "rows": args.rows}
        print(json.dumps({**asked, "runs": [asdict(report) for report in reports]}))
    else:
        print("\n".join(lines(reports)))
    if plot is not None:
        plot(reports, args.plot)
    return 0 if all(report.answered and not report.wrong for report in reports) else 1


def _payloads(protocol: Protocol, args: argparse.Namespace, tls: Tls | None, bearer: Bearer) -> tuple[Payload, ...]:
    """Each is sent once, alone: a request that the server refuses is told of before any load."""
    files, shapes = read_files(args.inputs), parse_shapes(args.shapes)
    with open_channel(args.target, CHANNEL_OPTIONS, tls) as channel:
        signature = protocol.signature(channel, args.model, args.timeout, bearer.metadata())
        declared = {spec.name: spec.dtype for spec in signature.inputs}
        arrays = make_payloads(signature.inputs, Wanted(files, shapes, args.rows, args.payloads))
        infer = channel.unary_unary(protocol.method, None, None)
        payloads = []
        for inputs in arrays:
            request = protocol.encode(args.model, inputs, declared)
            with translated():
                answer = infer(request, timeout=args.timeout, metadata=bearer.metadata())
            rows = args.rows if batches(signature.inputs) else None
            check_first(protocol.decode(answer), signature.outputs, rows)
            payloads.append(Payload(request, answer))
    return tuple(payloads)


def _paces(args: argparse.Namespace) -> list[Closed | Open]:
    if args.rate is None:
        if args.processes > min(args.concurrency):
            raise InputError(f"--processes {args.processes}: more than --concurrency {min(args.concurrency)}")
        return [Closed(concurrency) for concurrency in args.concurrency]
    return [Open(Arrivals(rate, args.burst, args.spacing, args.seed), args.max_in_flight) for rate in args.rate]
