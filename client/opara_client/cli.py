"""``opara-client``: ask a server from the command line.

Exit codes: 0 answered (``health``: and SERVING; ``perf``: and every answer right); 1 an error from the server or on the
way to it; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from opara_client.capacity import capacity
from opara_client.capacity_options import add_options as add_capacity_options
from opara_client.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT_S
from opara_client.client import OparaClient
from opara_client.errors import OparaError, Unavailable
from opara_client.health import HealthStatus
from opara_client.inputs import InputError, make_inputs, parse_inputs
from opara_client.messages import InferResult
from opara_client.models import Bucket, Candidate, ModelInfo, ModelState, ModelStatus, TensorSpec
from opara_client.perf import PROTOCOLS, perf
from opara_client.perf_options import add_options
from opara_client.security_options import add_security_options, security
from opara_client.wording import counted


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        status = command(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor does the end of Python complain
        return 1
    except InputError as error:
        parser.exit(2, f"opara-client: {error}\n")
    except OparaError as error:
        line = " ".join(str(error).split())
        print(f"opara-client: {line}", file=sys.stderr)
        return 1


def _asks(command: Callable[[OparaClient, argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """With a client of the server that the options name."""

    def run(args: argparse.Namespace) -> int:
        with _client(args) as client:
            return command(client, args)

    return run


def _client(args: argparse.Namespace) -> OparaClient:
    """Raises InputError."""
    tls, _ = security(args)
    try:
        return OparaClient(args.target, timeout=args.timeout, tls=tls, token=args.token, token_file=args.token_file)
    except ValueError as error:
        raise InputError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--target", default=DEFAULT_TARGET, metavar="HOST:PORT", help="default: %(default)s")
    common.add_argument(
        "--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="SECONDS", help="of each call; default: %(default)g"
    )
    add_security_options(common)
    parser = argparse.ArgumentParser(prog="opara-client", description="Ask an opara-serve server.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    infer = commands.add_parser("infer", parents=[common], help="run a model once and print its outputs")
    infer.add_argument("model", metavar="MODEL")
    infer.add_argument(
        "--input",
        dest="inputs",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="once for each input. VALUE: @FILE.npy; a JSON literal, rows outermost, e.g. [[0.5, 1]]; or random "
        "(in the input's range; without one, floats are standard normal, all else 0 or 1; the same at every call)",
    )
    infer.add_argument("--rows", type=int, metavar="N", help="of random inputs; default: those of the others, else 1")
    infer.add_argument("--output", type=Path, metavar="FILE.npz", help="save the outputs there, do not print them")
    infer.add_argument("--json", action="store_true", help="print JSON")
    infer.set_defaults(command=_asks(_infer))

    models = commands.add_parser("models", parents=[common], help="list the models, or show one with its plan")
    models.add_argument("model", metavar="MODEL", nargs="?")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(command=_asks(_models))

    health = commands.add_parser("health", parents=[common], help="print the health; exit 0 only if SERVING")
    health.add_argument("service", metavar="SERVICE", nargs="?", default="", help="a model; default: the server")
    health.set_defaults(command=_asks(_health))

    profile = commands.add_parser(
        "profile", parents=[common], help="trace some replays: how busy the model's streams are (serve --admin)"
    )
    profile.add_argument("model", metavar="MODEL")
    profile.add_argument("--batch-size", type=int, default=0, metavar="N", help="default: each that the model has")
    profile.add_argument("--json", action="store_true", help="print JSON, with the operators on their streams")
    profile.set_defaults(command=_asks(_profile))

    load = commands.add_parser("load", parents=[common], help="have a model loaded, or loaded again (serve --admin)")
    load.add_argument("model", metavar="MODEL")
    load.set_defaults(command=_asks(_load))

    unload = commands.add_parser("unload", parents=[common], help="have a model unloaded (serve --admin)")
    unload.add_argument("model", metavar="MODEL")
    unload.set_defaults(command=_asks(_unload))

    measure = commands.add_parser("perf", parents=[common], help="load a server and measure it")
    add_options(measure, PROTOCOLS)
    measure.set_defaults(command=perf)

    fleet = commands.add_parser("capacity", help="how many replicas a load needs, from what was measured of one")
    add_capacity_options(fleet)
    fleet.set_defaults(command=capacity)
    return parser


def _version() -> str:
    try:
        return version("opara-serve")
    except PackageNotFoundError:
        return "(run from its source, not installed)"


def _infer(client: OparaClient, args: argparse.Namespace) -> int:
    values = parse_inputs(args.inputs)
    model = client.model(args.model)
    if model.state is not ModelState.READY:  # its inputs may not be known
        raise Unavailable(f"model {model.name!r} is {model.state}: {model.why_not_ready}")
    result = client.infer(args.model, make_inputs(values, model.inputs, args.rows))
    if args.output:
        _save(args.output, result)
    if args.json:
        print(json.dumps(_result_json(result)))
    elif args.output:
        print(f"{args.output}: {', '.join(result)}")
    else:
        for name, array in result.items():
            print(f"{name}  {array.dtype.name} {list(array.shape)}\n{np.array2string(array, threshold=100)}")
    return 0


def _models(client: OparaClient, args: argparse.Namespace) -> int:
    answer: ModelInfo | tuple[ModelStatus, ...] = client.model(args.model) if args.model else client.models()
    if args.json:
        print(json.dumps(asdict(answer) if isinstance(answer, ModelInfo) else [asdict(status) for status in answer]))
    elif isinstance(answer, ModelInfo):
        print("\n".join(_model_lines(answer)))
    else:
        print("\n".join(_table([("MODEL", "STATE", "REASON"), *((s.name, s.state, s.reason) for s in answer)])))
    return 0


def _health(client: OparaClient, args: argparse.Namespace) -> int:
    status = client.health(args.service)
    print(status)
    return 0 if status is HealthStatus.SERVING else 1


def _load(client: OparaClient, args: argparse.Namespace) -> int:
    client.load(args.model)
    return 0


def _unload(client: OparaClient, args: argparse.Namespace) -> int:
    client.unload(args.model)
    return 0


def _profile(client: OparaClient, args: argparse.Namespace) -> int:
    profiles = client.profile(args.model, args.batch_size)
    if args.json:
        print(json.dumps([asdict(profile) for profile in profiles]))
        return 0
    rows = [("BATCH", "REPLAYS", "SPAN US", "CONCURRENCY", "TRACED IN MS", "STREAMS BUSY")]
    rows += [
        (
            str(profile.batch_size),
            str(profile.replays),
            f"{profile.span_us:.1f}",
            f"{profile.concurrency:.2f}",
            f"{profile.seconds * 1e3:.1f}",
            " ".join(f"{share:.0%}" for share in profile.stream_busy.values()),
        )
        for profile in profiles
    ]
    print("\n".join(_table(rows)))
    return 0


def _save(path: Path, result: InferResult) -> None:
    """As ``np.savez``, which would take an output called ``file`` for its own argument."""
    try:
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in result.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.save(entry, array)
    except OSError as error:
        raise InputError(f"--output {path}: {error.strerror or error}") from error


def _result_json(result: InferResult) -> dict[str, Any]:
    outputs = {
        name: {"dtype": array.dtype.name, "shape": array.shape, "data": array.tolist()}
        for name, array in result.items()
    }
    return {"model": result.model, "outputs": outputs}


def _model_lines(model: ModelInfo) -> list[str]:
    if model.state is ModelState.READY:
        where = f"on {model.device} ({model.device_name}), {counted(model.max_rows, 'row')} a request at most"
    else:
        where = model.why_not_ready
    lines = [f"{model.name}  {model.state}  {where}"]
    lines += [f"  input   {_spec(spec)}" for spec in model.inputs]
    lines += [f"  output  {_spec(spec)}" for spec in model.outputs]
    if model.fallback_reason:
        lines.append(f"  one sequential graph, because {model.fallback_reason}")
    for bucket in model.buckets:
        reused = ", plan from the cache" if bucket.reused else ""
        operators = counted(bucket.operators, f"{bucket.lowering} operator")
        lines.append(
            f"batch {bucket.batch_size}: {_schedule(bucket)} on {counted(bucket.streams, 'stream')}, "
            f"{operators}, {bucket.speedup:.2f}x over sequential, "
            f"{bucket.peak_bytes / 2**20:.1f} MiB of activations, keeps {bucket.steady_bytes / 2**20:.1f} MiB{reused}"
        )
        rows = [("operators", "policy", "streams", "syncs", "predicted us", "measured us", "again us", "peak MiB", "")]
        rows += [
            (
                candidate.lowering,
                _schedule(candidate),
                str(candidate.streams),
                str(candidate.synchronisations),
                f"{candidate.predicted_us:.1f}",
                f"{candidate.measured_us:.1f}" if candidate.measured_us else "",
                f"{candidate.again_us:.1f}" if candidate.again_us else "",
                f"{candidate.peak_bytes / 2**20:.1f}",
                f"refused: {candidate.rejected}"
                if candidate.rejected and candidate.measured_us
                else candidate.rejected,
            )
            for candidate in bucket.candidates
        ]
        lines += [f"  {line}" for line in _table(rows)]
    return lines


def _schedule(plan: Bucket | Candidate) -> str:
    return f"{plan.policy}, compacted" if plan.compact else plan.policy


def _spec(spec: TensorSpec) -> str:
    limits = "" if spec.low is None or spec.high is None else f"  in [{spec.low:.15g}, {spec.high:.15g})"
    return f"{spec.name}  {spec.dtype} [{', '.join(['rows', *map(str, spec.shape[1:])])}]{limits}"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
