"""When a measurement counts: every answer was an answer, and those that were looked at were right."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from bench.serving.h2load import Report
from bench.serving.payloads import Floats, Payload
from bench.serving.protocols import Echo, WireProtocol

TOLERANCE = 1e-5  # of the MLP's outputs, about 0.3: batches of other sizes round in other ways
_COUNTED = re.compile(r'opara_requests_total\{(?=[^}]*code="(?P<code>\w+)")[^}]*model="(?P<model>[^"]*)"')
Codes = Mapping[str, float]


def sampled(
    call: Callable[[bytes], bytes], protocol: WireProtocol, payload: Payload, random: np.random.Generator, count: int
) -> list[str]:
    """What is wrong with ``count`` real calls, each with other values."""
    problems = []
    for _ in range(count):
        x = payload.draw(random)
        right = x if isinstance(protocol, Echo) else payload.answer(x)
        try:
            problems += _compared(protocol.decode(call(protocol.encode(payload.name, x))), right)
        except grpc.RpcError as error:
            problems.append(f"a sampled call failed: {error.code().name}")
        except (DecodeError, ValueError) as error:
            problems.append(f"a sampled answer is none: {error}")
    return problems


def _compared(answer: Floats, right: Floats) -> list[str]:
    if answer.shape != right.shape:
        return [f"a sampled answer has shape {list(answer.shape)}, not {list(right.shape)}"]
    return [] if np.allclose(answer, right, rtol=0, atol=TOLERANCE) else ["a sampled answer is wrong"]


def loaded(report: Report, answer_bytes: int, callers: int) -> list[str]:
    """What is wrong with what h2load saw. ``answer_bytes``: a right answer's, framed. A failed call has none, and up to
    ``callers`` answers were on their way at the end: h2load counts what came of them, but not that they are done."""
    problems = []
    if not report.done or report.bad or not report.done <= report.ok <= report.done + callers:
        problems.append(f"of {report.done} requests {report.ok} had HTTP status 200, and {report.bad} failed")
    if not report.done * answer_bytes <= report.data_bytes <= (report.done + callers) * answer_bytes:
        problems.append(
            f"{report.done} answers of {answer_bytes} bytes cannot be {report.data_bytes} bytes: calls failed"
        )
    return problems


def request_codes(exposition: str, model: str) -> Counter[str]:
    """Requests of ``model`` by gRPC code, from opara-server's metrics in Prometheus' text format."""
    codes: Counter[str] = Counter()
    for line in exposition.splitlines():
        found = _COUNTED.match(line)
        if found and found["model"] == model:
            codes[found["code"]] += int(float(line.rpartition(" ")[2]))
    return codes


def counted(before: Codes, after: Codes, done: int, callers: int) -> list[str]:
    """What is wrong with a server's own counts, where the generator saw ``done`` answers. What is in flight when the
    generator hangs up, up to ``callers``, is cancelled or answered all the same, and so was that of the warm-up."""
    grown = {code: after[code] - before.get(code, 0) for code in after}
    problems = [
        f"the server counted {count:.0f} requests as {code}"
        for code, count in grown.items()
        if count and code not in {"OK", "CANCELLED"}
    ]
    if not done <= grown.get("OK", 0) <= done + 2 * callers:
        problems.append(f"the server counted {grown.get('OK', 0):.0f} OK, the generator {done} answers")
    return problems
