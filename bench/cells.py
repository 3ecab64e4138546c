"""What was measured, as data: a cell group is one model at one dtype and batch size, a file of its own. No torch."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from opara_server.engine.plan import Candidate

FORMAT = 2  # of the files: raise it when older ones no longer mean the same
WITH_DEVICE_TIMES = 1  # the format before, which can be read: it has them of what the host drives, too
HOST_DRIVEN = {"eager", "compile_reduce_overhead", "compile_max_autotune"}  # of that format
FLOAT64 = "float64"  # what settings["reference"] usually is
DECIDING = ("device", "gpu", "cpu", "torch", "cuda", "cudnn", "triton", "opara")  # another of these: measure anew
ENGINE = "engine"  # its sources decide as well
DECIDING_SETTINGS = ("seconds", "tuning_budget_s")


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

    ``median_us``: device time of one run, of runs in turns; None of what the host drives, whose launching a device
    hides or not, by what else it has to do. ``host_us``: from the call until the device is done, for a caller who
    waits. ``spread``: uncertainty of ``time_us`` as a share of it. ``longest_path_us``: sum of the kernels along the
    longest path of the system's own operators. ``one_stream_us``: what its operators take one after the other, where a
    search measured that. ``candidates``: all schedules that a search tried or left out. SM figures: shares (0..1)
    during back-to-back runs. ``peak_bytes``: activations, outputs and workspaces during a run, as measured when it was
    captured; ``held_bytes``: what the system keeps beside the module's weights. ``error``: the error norm against
    float64. ``tuning_seconds``: wall time until it was ready.
    """

    failed: str | None = None
    median_us: float | None = None
    spread: float | None = None
    host_us: float | None = None
    longest_path_us: float | None = None
    one_stream_us: float | None = None
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
    candidates: tuple[Candidate, ...] = ()
    detail: str = ""

    @property
    def time_us(self) -> float | None:
        """What counts: device time, and the host's of what the host drives."""
        return self.host_us if self.median_us is None else self.median_us


@dataclass(frozen=True)
class Cell:
    """``graph``: counts and times of the ATen operator graph; ``studies``: what was measured besides, by name;
    ``seconds``: what the cell cost, by phase; ``settings``: equal for all systems; ``cache``: "cold" where
    torch.compile had nothing to start from; ``failed``: why the whole group has no result; ``format``: of its file."""

    key: CellKey
    environment: Mapping[str, str | int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    systems: Mapping[str, SystemResult] = field(default_factory=dict)
    graph: Mapping[str, float] = field(default_factory=dict)
    studies: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    cache: str = ""
    failed: str = ""
    format: int = FORMAT

    def right(self, system: str) -> SystemResult | None:
        """None where the system was not run, failed, or gave wrong numbers."""
        found = self.systems.get(system)
        return found if found and found.failed is None and found.verified is not False else None

    def time_us(self, system: str) -> float | None:
        found = self.right(system)
        return found.time_us if found else None

    def speedup(self, over: str, system: str) -> float | None:
        """How much longer ``over`` takes: by the device's clock, or by the host's where the host drives one of them."""
        ours, theirs = self.right(system), self.right(over)
        if not (ours and theirs):
            return None
        if ours.median_us and theirs.median_us:
            return theirs.median_us / ours.median_us
        return theirs.host_us / ours.host_us if ours.host_us and theirs.host_us else None

    def rival(self, systems: Iterable[str], system: str) -> str | None:
        """The one of ``systems`` over which ``system`` gains least."""
        gains = {name: gain for name in systems if (gain := self.speedup(name, system)) is not None}
        return min(gains, key=lambda name: gains[name], default=None)

    def to_json(self) -> dict[str, Any]:
        """Without what is not known."""
        data = asdict(self)
        data["systems"] = {
            name: {key: value for key, value in found.items() if value is not None and value != ()}
            for name, found in data["systems"].items()
        }
        return {"format": data.pop("format"), **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """Raises ValueError on what is no cell of a format that can be read."""
        try:
            fields = dict(data)
            found = fields["format"]
            if found not in (WITH_DEVICE_TIMES, FORMAT):
                raise ValueError(f"a cell of format {found!r}, not {FORMAT}")
            fields["key"] = CellKey(**fields["key"])
            systems = {name: _result(result) for name, result in fields["systems"].items()}
            if found == WITH_DEVICE_TIMES:
                timed = {name: replace(systems[name], median_us=None, spread=None) for name in HOST_DRIVEN & {*systems}}
                systems = {name: timed.get(name, result) for name, result in systems.items()}
            fields["systems"] = systems
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no cell: {error!r}") from error


def _result(data: Mapping[str, Any]) -> SystemResult:
    candidates = tuple(Candidate(**candidate) for candidate in data.get("candidates", ()))
    return SystemResult(**{**data, "candidates": candidates})


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


def is_current(
    cell: Cell | None,
    environment: Mapping[str, str | int],
    settings: Mapping[str, float],
    systems: Iterable[str],
    *,
    any_engine: bool = False,
) -> bool:
    """Whether a cell need not be measured again: same machine, versions and settings, and every system asked for was
    tried. ``any_engine``: by whatever sources of the engine."""
    if cell is None or cell.failed:
        return False
    deciding = DECIDING if any_engine else (*DECIDING, ENGINE)
    same = all(cell.environment.get(name) == environment.get(name) for name in deciding)
    alike = all(cell.settings.get(name) == settings[name] for name in DECIDING_SETTINGS)
    return same and alike and set(systems) <= set(cell.systems)
