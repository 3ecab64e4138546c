"""How well the simulator predicts: measured schedules as data, and what the simulator says of the same ones.

    python -m bench.prediction bench/data/schedules/*.json.gz

Needs neither torch nor a GPU: ``bench.simulator`` measured once, and a change to the simulator or to its numbers can be
judged anywhere.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import StatisticsError, correlation, median
from typing import Annotated, Any

import typer

from bench.provenance import digest, machine
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.profile import Profile
from opara_server.engine.schedule import Schedule
from opara_server.engine.simulate import Latency, simulate

RANDOM = "random"
TOP = 5
CLOSE = 1.03  # times the best
STEADY = 0.02  # the largest spread of a time that is worth comparing: beyond, something else ran on the device
ENOUGH = 20  # steady random schedules: fewer are no judgement
ALIKE = 3.0  # times the usual spread: the range that twenty equal schedules show

LEGEND = f"""\
Per model, dtype and batch size, schedules of one operator graph (*lowering*: how its kernels were made) were measured
in turns, and the simulator predicted each one's time from the same profile. The simulator's constants were fitted to
earlier records of the same models (`bench.calibration`): on models that nobody has measured it may do worse.

- *schedules*: those measured steadily, random ones and those of the policies; *unsteady*: those left out, whose spread
  (how far their time moved when measured again) is above {STEADY:.0%}; *random*: how many steady ones are random, that
  is operators in a random order on random streams.
- *slowest / fastest*: of the random ones, measured; *noise*: their median spread.
- *rank correlation*: Spearman's, of predicted and measured times of the random ones: 1 is the same order, 0 none;
  *all alike*: slowest and fastest differ by no more than {ALIKE:.0f} times the noise, so that there is no order.
  *Not judged*: of records with fewer than {ENOUGH} steady random schedules.
- *median error*: of |predicted / measured − 1| over all steady ones; *predicted / measured*: the median: above 1 the
  simulator says too long.
- *best of top {TOP} / best*: the fastest of the {TOP} predicted fastest, as measured, over the fastest of all; *missed*
  above {CLOSE:.2f}. The engine measures a few that are predicted fast and takes the best, so this is what counts."""


@dataclass(frozen=True)
class Measured:
    """``median_us``: of replays; ``spread``: how uncertain it is, as a share of it: by how much it differed when it was
    measured again, or interquartile range / sqrt(replays)."""

    schedule: Schedule
    median_us: float
    spread: float


@dataclass(frozen=True)
class Record:
    """Schedules of one model in one bucket, measured in turns on one device."""

    model: str
    lowering: str
    dtype: str
    batch: int
    environment: dict[str, Any]
    graph: OperatorGraph
    profile: Profile
    measured: tuple[Measured, ...]

    @property
    def steady(self) -> tuple[Measured, ...]:
        """Those whose time can be trusted."""
        return tuple(m for m in self.measured if m.spread <= STEADY)


@dataclass(frozen=True)
class Accuracy:
    """Of the steady schedules; ``unsteady``: how many others there are.

    ``random``: how many are random; ``range``: the slowest random one's time over the fastest's; ``noise``: their usual
    spread. ``rank_correlation``: Spearman's over the random ones, None where they are all alike (range and noise cannot
    be told apart) or fewer than two. ``error``: the median of |predicted / measured - 1| over all; ``scale``: the
    median of predicted / measured; ``top``: the best measured time among the TOP predicted fastest, over the best of
    all. All but the counts are None where nothing is steady.
    """

    model: str
    lowering: str
    dtype: str
    batch: int
    schedules: int
    unsteady: int
    random: int
    range: float | None
    noise: float | None
    rank_correlation: float | None
    error: float | None
    scale: float | None
    top: float | None

    @property
    def few(self) -> bool:
        return self.random < ENOUGH

    @property
    def alike(self) -> bool:
        return self.range is not None and self.noise is not None and self.range - 1 <= ALIKE * self.noise


def predicted_us(record: Record, latency: Latency) -> list[float]:
    """Per measured schedule."""
    return [simulate(record.graph, m.schedule, record.profile, latency).makespan_us for m in record.measured]


def evaluate(record: Record, latency: Latency) -> Accuracy:
    steady = record.steady
    predicted = predicted_us(replace(record, measured=steady), latency)
    measured = [m.median_us for m in steady]
    random = [i for i, m in enumerate(steady) if m.schedule.policy == RANDOM]
    times = [measured[i] for i in random]
    ratios = [p / m for p, m in zip(predicted, measured, strict=True)]
    first = sorted(range(len(predicted)), key=predicted.__getitem__)[:TOP]
    found = Accuracy(
        record.model,
        record.lowering,
        record.dtype,
        record.batch,
        schedules=len(steady),
        unsteady=len(record.measured) - len(steady),
        random=len(random),
        range=max(times) / min(times) if times else None,
        noise=median(steady[i].spread for i in random) if random else None,
        rank_correlation=spearman([predicted[i] for i in random], times),
        error=median(abs(ratio - 1) for ratio in ratios) if ratios else None,
        scale=median(ratios) if ratios else None,
        top=min(measured[i] for i in first) / min(measured) if first else None,
    )
    return replace(found, rank_correlation=None) if found.alike else found


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where one of the two is constant or has fewer than two values."""
    try:
        return correlation(_ranks(first), _ranks(second))
    except StatisticsError:
        return None


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; equal values share the mean of theirs."""
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values), 1):
        places.setdefault(value, []).append(place)
    return [sum(places[value]) / len(places[value]) for value in values]


def table(accuracies: Sequence[Accuracy]) -> str:
    columns = (
        *("model", "lowering", "schedules", "unsteady", "random", "slowest / fastest", "noise", "rank correlation"),
        *("median error", "predicted / measured", f"best of top {TOP} / best"),
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for a in accuracies:
        rank = "all alike" if a.alike else _shown(a.rank_correlation, ".3f")
        missed = " (missed)" if a.top is not None and a.top > CLOSE else ""
        rank, top = ("not judged", "not judged") if a.few else (rank, f"{_shown(a.top, '.3f')}{missed}")
        lines.append(
            f"| {_name(a)} | {a.lowering} | {a.schedules} | {a.unsteady} | {a.random} "
            f"| {_shown(a.range, '.2f')} | {_shown(a.noise, '.1%')} | {rank} | {_shown(a.error, '.1%')} "
            f"| {_shown(a.scale, '.3f')} | {top} |"
        )
    return "\n".join([*lines, "", _summary(accuracies)])


def _name(accuracy: Accuracy) -> str:
    return f"{accuracy.model} {accuracy.dtype} ×{accuracy.batch}"


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _summary(accuracies: Sequence[Accuracy]) -> str:
    few = [f"{_name(a)} ({a.random})" for a in accuracies if a.few]
    alike = [_name(a) for a in accuracies if a.alike and not a.few]
    judged = [a for a in accuracies if not (a.few or a.alike)]
    said = [_held(judged, len(accuracies))]
    if few:
        said.append(f"Not judged, with fewer than {ENOUGH} steady random schedules: {', '.join(few)}.")
    if alike:
        said.append(f"All alike: {', '.join(alike)}.")
    return " ".join(said)


def _held(accuracies: Sequence[Accuracy], records: int) -> str:
    known = [a.rank_correlation for a in accuracies if a.rank_correlation is not None]
    tops = [a.top for a in accuracies if a.top is not None]
    ranked = f"Median rank correlation {median(known):.3f} over {len(known)}" if known else "No rank correlation"
    held = sum(top <= CLOSE for top in tops)
    return (
        f"{ranked} of {records} records. The top {TOP} hold one within {CLOSE - 1:.0%} of the best in {held} "
        f"of {len(tops)}."
    )


def unfiltered(records: Sequence[Record], latency: Latency) -> str:
    """One sentence: the same of all schedules, steady or not, and of every record."""
    taken = [replace(r, measured=tuple(replace(m, spread=0.0) for m in r.measured)) for r in records]
    return f"Of all schedules, the unsteady ones too: {_held([evaluate(r, latency) for r in taken], len(records))}"


def described(records: Sequence[Record], accuracies: Sequence[Accuracy], latency: Latency) -> str:
    """The whole of ``simulator.md``."""
    environments = [record.environment for record in records]
    engines = ", ".join(sorted({digest(environment) for environment in environments}))
    parts = ["# How well the simulator predicts", machine(environments), f"Engine sources {engines}.", LEGEND]
    others = "On a model of which nobody has measured anything: [calibration.md](calibration.md)."
    return "\n\n".join([*parts, table(accuracies), unfiltered(records, latency), others])


def save(record: Record, folder: Path) -> Path:
    """As gzipped JSON."""
    data = {
        "model": record.model,
        "lowering": record.lowering,
        "dtype": record.dtype,
        "batch": record.batch,
        "environment": record.environment,
        "graph": record.graph.to_json(),
        "profile": record.profile.to_json(),
        "schedules": [
            {"schedule": m.schedule.to_json(), "median_us": round(m.median_us, 3), "spread": round(m.spread, 6)}
            for m in record.measured
        ],
    }
    path = record_path(folder, record.model, record.lowering, record.dtype, record.batch)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(data, separators=(",", ":")).encode(), mtime=0))
    return path


def record_path(folder: Path, model: str, lowering: str, dtype: str, batch: int) -> Path:
    return folder / f"{model}-{lowering}-{dtype}-{batch}.json.gz"


def load(path: Path) -> Record:
    data = json.loads(gzip.decompress(path.read_bytes()))
    return Record(
        data["model"],
        data["lowering"],
        data["dtype"],
        data["batch"],
        data["environment"],
        OperatorGraph.from_json(data["graph"]),
        Profile.from_json(data["profile"]),
        tuple(Measured(Schedule.from_json(s["schedule"]), s["median_us"], s["spread"]) for s in data["schedules"]),
    )


def report(records: Sequence[Record], latency: Latency, output: Path) -> str:
    """Evaluate, write ``output`` as JSON and beside it the table, which is returned."""
    accuracies = [evaluate(record, latency) for record in records]
    environments = {json.dumps(record.environment, sort_keys=True): record.environment for record in records}
    result = {
        "environments": list(environments.values()),
        "latency": asdict(latency),
        "results": [asdict(a) for a in accuracies],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    text = described(records, accuracies, latency)
    output.with_suffix(".md").write_text(text + "\n")
    return text


def main(records: list[Path], output: Annotated[Path, typer.Option()] = Path("bench/results/simulator.json")) -> None:
    """Evaluate measured schedules with the simulator as it is now."""
    typer.echo(report([load(path) for path in records], Latency(), output))


if __name__ == "__main__":
    typer.run(main)
