"""What was run, on what, and from which sources of the engine: said in words. No torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bench.cells import Cell, CellKey
from bench.selection import ALL_MODELS, BATCHES, DTYPES
from bench.tables import SHORT, Cells, cell_name, required_keys

COMMITS = Path(__file__).parent / "results" / "commits.json"
TOLD = ("gpu", "multiprocessors", "cpu", "cores", "torch", "cuda", "cudnn", "triton", "opara", "date")


def machine(environments: Iterable[Mapping[str, Any]]) -> str:
    """Device, versions and date. More than one value of anything is said."""
    known = list(environments)
    if not known:
        return "Nothing was run."
    values = {name: sorted({str(one[name]) for one in known if name in one}) for name in TOLD}
    return "; ".join(f"{name} {', '.join(found)}" for name, found in values.items() if found) + "."


def digest(environment: Mapping[str, Any]) -> str:
    """Of the engine's sources, and the first commit that has them, where ``commits.json`` tells it."""
    found = str(environment.get("engine", "unknown"))
    commit = _commits().get(found)
    return f"{found} of commit {commit}" if commit else found


@cache
def _commits() -> dict[str, str]:
    return dict(json.loads(COMMITS.read_text()))


def sources(cells: Cells) -> str:
    """One sentence: how many cells are of the sources that most cells are of, and which are of others."""
    by_digest: dict[str, list[CellKey]] = {}
    for key in sorted(cells):
        by_digest.setdefault(digest(cells[key].environment), []).append(key)
    if not by_digest:
        return ""
    (usual, most), *others = sorted(by_digest.items(), key=lambda item: -len(item[1]))
    said = f"Digest of the engine's sources: {usual} in {len(most)} of {len(cells)} cells."
    if not others:
        return said
    listed = "; ".join(f"{name} in {_listed(keys)}" for name, keys in others)
    return f"{said} Of other sources, {len(cells) - len(most)}: {listed}."


def settings(cells: Cells) -> str:
    """One sentence: what was set by whoever ran the cells."""
    told = [
        f"this engine's tuning budget {_counted(cells, 'tuning_budget_s')}",
        f"timing, per system, {_counted(cells, 'seconds')}",
    ]
    return f"Set for each cell: {'; '.join(told)}." if any(cell.settings for cell in cells.values()) else ""


def _counted(cells: Cells, setting: str) -> str:
    """In seconds; in how many cells where there are several values."""
    counts = Counter(cell.settings[setting] for cell in cells.values() if setting in cell.settings)
    if len(counts) < 2:
        return "".join(f"{value:g} s" for value in counts) or "not known"
    return ", ".join(f"{value:g} s in {count} cells" for value, count in sorted(counts.items()))


def coverage(cells: Cells) -> str:
    """How many cells were run, which of the required ones were not, and which systems are missing in how many."""
    ran = {key: cell for key, cell in cells.items() if not cell.failed}
    required = required_keys()
    lacking = [key for key in required if key not in ran]
    possible = len(ALL_MODELS) * len(BATCHES) * len(DTYPES)
    said = [
        f"{len(required) - len(lacking)} of the {len(required)} required cells were run, and {len(ran)} of all "
        f"{possible} ({len(ALL_MODELS)} models × {len(BATCHES)} batch sizes × {len(DTYPES)} dtypes)."
    ]
    if not ran:
        return said[0]
    if lacking:
        said.append(f"Required and without a result: {_listed(lacking)}.")
    if missing := _missing_systems(ran.values()):
        said.append("Systems that were not run, and in how many of these cells: " + ", ".join(missing) + ".")
    return " ".join(said)


def _missing_systems(cells: Iterable[Cell]) -> list[str]:
    counts = Counter(name for cell in cells for name in SHORT if name not in cell.systems)
    return [f"{SHORT[name]} {counts[name]}" for name in SHORT if counts[name]]


def _listed(keys: Iterable[CellKey]) -> str:
    return ", ".join(map(cell_name, keys))
