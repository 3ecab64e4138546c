"""What was measured, as data: a cell group is one model at one dtype and batch size, a file of its own. No torch."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1  # of the files: raise it when older ones no longer mean the same
DECIDING = ("device", "gpu", "cpu", "torch", "cuda", "cudnn", "triton", "opara")  # another of these: measure anew


@dataclass(frozen=True, order=True)
class CellKey:
    model: str
    dtype: str
    batch: int

    @property
    def stem(self) -> str:
        """Of file names."""
        return re.sub(r"[^\w.-]", "_", f"{self.model}-{self.dtype}-b{self.batch}")

    def __str__(self) -> str:
        return f"{self.model} {self.dtype} ×{self.batch}"


@dataclass(frozen=True)
class SystemResult:
    """One system's cell. ``failed``: why there is nothing else; None where there is.

    ``median_us``: device time of one run, of runs in turns; ``spread``: its uncertainty as a share of it;
    ``host_us``: from the call until the device is done, for a caller who waits. ``longest_path_us``: sum of the kernels
    along the longest path of the system's own operators. SM figures: shares (0..1) during back-to-back runs.
    ``peak_bytes``: activations, outputs and workspaces during a run, as measured when it was captured; ``held_bytes``:
    what the system keeps beside the module's weights. ``error``: the error norm against float64. ``tuning_seconds``:
    wall time until it was ready.
    """

    failed: str | None = None
    median_us: float | None = None
    spread: float | None = None
    host_us: float | None = None
    longest_path_us: float | None = None
    sm_utilisation: float | None = None
    sm_occupancy: float | None = None
    peak_bytes: int | None = None
    held_bytes: int | None = None
    tuning_seconds: float | None = None
    streams: int | None = None
    policy: str | None = None
    lowering: str | None = None
    error: float | None = None
    verified: bool | None = None
    detail: str = ""


@dataclass(frozen=True)
class Cell:
    """``graph``: counts and times of the ATen operator graph; ``studies``: what was measured besides, by name;
    ``seconds``: what the cell cost, by phase; ``settings``: equal for all systems; ``cache``: "cold" where
    torch.compile had nothing to start from; ``failed``: why the whole group has no result."""

    key: CellKey
    environment: Mapping[str, str | int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    systems: Mapping[str, SystemResult] = field(default_factory=dict)
    graph: Mapping[str, float] = field(default_factory=dict)
    studies: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    cache: str = ""
    failed: str = ""

    def median(self, system: str) -> float | None:
        """In µs; None where the system was not run, failed, or gave wrong numbers."""
        found = self.systems.get(system)
        return found.median_us if found and found.verified is not False else None

    def speedup(self, over: str, system: str) -> float | None:
        ours, theirs = self.median(system), self.median(over)
        return theirs / ours if ours and theirs else None

    def best(self, systems: Iterable[str]) -> str | None:
        """The fastest of ``systems`` that has a right answer."""
        times = {name: time for name in systems if (time := self.median(name)) is not None}
        return min(times, key=lambda name: times[name], default=None)

    def to_json(self) -> dict[str, Any]:
        """Without what is not known."""
        data = asdict(self)
        data["systems"] = {
            name: {key: value for key, value in found.items() if value is not None}
            for name, found in data["systems"].items()
        }
        return {"format": FORMAT, **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """Raises ValueError on what is no cell of this format."""
        try:
            fields = dict(data)
            found = fields.pop("format")
            if found != FORMAT:
                raise ValueError(f"a cell of format {found!r}, not {FORMAT}")
            fields["key"] = CellKey(**fields["key"])
            fields["systems"] = {name: SystemResult(**result) for name, result in fields["systems"].items()}
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no cell: {error!r}") from error


def load_cell(folder: Path, key: CellKey) -> Cell | None:
    """None where there is no file, or one that cannot be read as a cell."""
    try:
        return Cell.from_json(json.loads((folder / f"{key.stem}.json").read_text()))
    except (FileNotFoundError, ValueError):
        return None


def load_cells(folder: Path) -> dict[CellKey, Cell]:
    """Raises ValueError on a file that is no cell."""
    cells = {}
    for path in sorted(folder.glob("*.json")):
        try:
            cell = Cell.from_json(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        cells[cell.key] = cell
    return cells


def save_cell(folder: Path, cell: Cell) -> None:
    """Atomic: a run that is cut off leaves a whole file or none."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        whole = Path(temporary) / cell.key.stem
        lines = [f"{json.dumps(name)}: {json.dumps(part, allow_nan=False)}" for name, part in cell.to_json().items()]
        whole.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        whole.replace(folder / f"{cell.key.stem}.json")


def is_current(cell: Cell | None, environment: Mapping[str, str | int], systems: Iterable[str]) -> bool:
    """Whether a cell need not be measured again: same machine and versions, every system asked for was tried."""
    if cell is None or cell.failed:
        return False
    same = all(cell.environment.get(name) == environment.get(name) for name in DECIDING)
    return same and set(systems) <= set(cell.systems)
