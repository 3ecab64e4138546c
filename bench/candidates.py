"""What the search of every cell chose from: what each lowering, policy and priority brought. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from bench.cells import CellKey, SystemResult
from bench.tables import OURS, Cells, markdown, number, title
from opara_server.engine.options import ATEN, FUSED
from opara_server.engine.plan import Candidate

POLICIES = ("sequential", "opara", "nimble", "wavefront", "critical_path", "heft", "packed", "ios", "search")
WRAPPED = re.compile(r"(urgent|lean)\((.+)\)")

HOW = """\
Of cells that were run since candidates are kept: µs as the search measured them, in turns. *Lowerings*: the fastest
schedule on each one's operators. *Policies*: the fastest schedule of each on the operators of the lowering that serves,
with whatever streams, waits and priorities. **Bold**: what serves. *–*: not to be had, or not measured, since others
were predicted faster. *Variants*: *urgent*, with high priority for the streams of the longest path, and *lean*, with
waits that let it do with less memory, over the same schedule without."""


def candidate_tables(cells: Cells) -> list[str]:
    """Parts of ``engine.md``; empty where no cell has candidates."""
    kept = {key: own for key, cell in sorted(cells.items()) if (own := cell.right(OURS)) and own.candidates}
    if not kept:
        return []
    variants = [row for key, own in kept.items() for row in _variants(key, own)]
    return [
        "## What each lowering, policy and priority brought",
        HOW,
        _table(kept, "lowerings", _lowerings(kept), lambda _own, one: one.lowering),
        _table(kept, "policies", POLICIES, lambda own, one: family(one.policy) if one.lowering == own.lowering else ""),
        *([markdown(["variants", "lowering", "µs", "without", "gain", "serves"], variants)] if variants else []),
    ]


def _lowerings(kept: dict[CellKey, SystemResult]) -> Sequence[str]:
    """The engine's, and those that it had when a cell was run."""
    return tuple(dict.fromkeys((ATEN, *FUSED, *(one.lowering for own in kept.values() for one in own.candidates))))


def chosen(cells: Cells) -> str:
    """One sentence: which policies serve, in how many cells."""
    policies = [own.policy for cell in cells.values() if (own := cell.right(OURS)) and own.policy]
    if not policies:
        return ""
    counts = Counter(map(family, policies))
    told = ", ".join(f"{name} {counts[name]}" for name in sorted(counts, key=lambda name: (-counts[name], name)))
    wraps = [f"{sum(f'{wrap}(' in policy for policy in policies)} {wrap}" for wrap in ("urgent", "lean")]
    return f"Policies that were chosen, in how many of {len(policies)} cells: {told}; of these {', '.join(wraps)}."


def family(policy: str) -> str:
    """A policy without its parameters and what it is wrapped in: of ``urgent(lean(heft:4))`` heft."""
    while wrapped := WRAPPED.fullmatch(policy):
        policy = wrapped[2]
    return re.split(r"[:(]", policy)[0]


def _table(
    kept: dict[CellKey, SystemResult],
    what: str,
    names: Sequence[str],
    group: Callable[[SystemResult, Candidate], str],
) -> str:
    rows = []
    for key, own in kept.items():
        best: dict[str, Candidate] = {}
        for one in sorted(own.candidates, key=lambda one: one.measured_us):
            if one.measured_us:
                best.setdefault(group(own, one), one)
        serving = group(own, _serving(own))
        times = [number(best[name].measured_us if name in best else None, ".1f") for name in names]
        marked = [f"**{time}**" if name == serving else time for name, time in zip(names, times, strict=True)]
        rows.append([f"{title(key.model)} {key.dtype} ×{key.batch}", *marked])
    return markdown([what, *names], rows)


def _serving(own: SystemResult) -> Candidate:
    """One of the candidates of its policy and lowering."""
    return next(one for one in own.candidates if (one.policy, one.lowering) == (own.policy, own.lowering))


def _variants(key: CellKey, own: SystemResult) -> Iterator[list[str]]:
    plain = {one.key: one for one in own.candidates if one.measured_us}
    for one in plain.values():
        wrapped = WRAPPED.fullmatch(one.policy)
        without = plain.get((one.lowering, wrapped[2], one.compact)) if wrapped else None
        if without:
            serves = "yes" if (one.policy, one.lowering) == (own.policy, own.lowering) else ""
            yield [
                *(f"{title(key.model)} {key.dtype} ×{key.batch}: {one.policy}", one.lowering),
                *(number(one.measured_us, ".1f"), number(without.measured_us, ".1f")),
                *(f"{without.measured_us / one.measured_us - 1:+.1%}", serves),
            ]
