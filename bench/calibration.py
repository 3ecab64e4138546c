"""What a device's latencies are, found from measured schedules: the ``Latency`` with which the simulator predicts best.

    python -m bench.calibration bench/data/schedules/*.json.gz

Needs no GPU; minutes. Writes ``bench/results/calibration.md``. Each model is also predicted with what was fitted to the
*others*, which is what the numbers are worth on a model that nobody has measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from math import log
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import typer

from bench.prediction import RANDOM, Accuracy, Record, evaluate, load, predicted_us, spearman, table
from opara_server.engine.simulate import Latency

FIELDS = tuple(field.name for field in fields(Latency))
COUNTS = {"reach"}  # whole numbers
FACTORS = (2.0, 1.4, 1.15, 1.05)  # coarse steps first
LEAST_US = 0.05  # from 0 there is no factor to go up by
SCALE_WEIGHT = 0.3
ENOUGH = 1e-3  # of loss, for a step to be worth going on

Loss = Callable[[Latency], float]


def loss(latency: Latency, record: Record) -> float:
    """Over the record's steady schedules: how far |log(predicted / measured)| is from its median in the mean, what is
    missing to a rank correlation of 1, and little of that median itself, since a profile in which everything is some
    per cent too long is no fault of the latencies. 0 is best."""
    steady = replace(record, measured=record.steady)
    predicted = predicted_us(steady, latency)
    ratios = [log(p / m.median_us) for p, m in zip(predicted, steady.measured, strict=True)]
    middle = median(ratios)
    random = [i for i, m in enumerate(steady.measured) if m.schedule.policy == RANDOM]
    rank = spearman([predicted[i] for i in random], [steady.measured[i].median_us for i in random])
    missing = 1.0 - (rank or 0.0) if len(random) > 1 else 0.0
    return mean(abs(ratio - middle) for ratio in ratios) + SCALE_WEIGHT * abs(middle) + missing


def fit(loss_of: Loss, start: Latency) -> Latency:
    """Steepest descent: of all numbers, moved up, down and to 0 by ever finer factors (counts by one), the one that
    helps most, while any does. It ends in the nearest of several minima: ``start`` should be near what is known."""
    best, least = start, loss_of(start)
    for factor in FACTORS:
        while True:
            losses = {moved: loss_of(moved) for moved in _neighbours(best, factor)}
            moved = min(losses, key=losses.__getitem__)
            if losses[moved] >= least - ENOUGH:
                break
            best, least = moved, losses[moved]
    return best


def _neighbours(latency: Latency, factor: float) -> Iterator[Latency]:
    for name in FIELDS:
        value = getattr(latency, name)
        others = (max(value * factor, LEAST_US), value / factor if value > LEAST_US else 0.0)
        if name in COUNTS:
            others = (value + 1, max(0, value - 1))
        for other in others:
            changed: dict[str, Any] = {name: round(other, 4)}
            yield replace(latency, **changed)


@contextmanager
def parallel_loss(records: Sequence[Record]) -> Iterator[Loss]:
    """The mean loss over ``records``, each in whichever process is free."""
    with ProcessPoolExecutor() as pool:
        yield lambda latency: mean(pool.map(partial(loss, latency), records))


def thinned(record: Record, most: int) -> Record:
    """At most ``most`` of its schedules, evenly taken: fitting needs fewer than judging does."""
    step = -(-len(record.measured) // most)
    return replace(record, measured=record.measured[::step])


def main(
    records: list[Path],
    schedules: Annotated[int, typer.Option(help="How many of each record's are fitted to.")] = 16,
    held_out: Annotated[bool, typer.Option(help="Also predict each model from the others.")] = True,
    output: Path = Path("bench/results/calibration.md"),
) -> None:
    """Fit the latencies and write them down with the accuracy that they give."""
    loaded = [load(path) for path in records]
    few = [thinned(record, schedules) for record in loaded]
    with parallel_loss(few) as loss_of:
        fitted = fit(loss_of, Latency())
    accuracies = []
    for model in dict.fromkeys(record.model for record in loaded) if held_out else ():
        with parallel_loss([record for record in few if record.model != model]) as loss_of:
            of_others = fit(loss_of, fitted)
        accuracies += [evaluate(record, of_others) for record in loaded if record.model == model]
    text = described(fitted, [evaluate(record, fitted) for record in loaded], accuracies, schedules)
    output.write_text(text + "\n")
    typer.echo(text)


def described(fitted: Latency, of_all: Sequence[Accuracy], of_others: Sequence[Accuracy], schedules: int) -> str:
    """The whole of ``calibration.md``."""
    parts = [
        "# Latencies, fitted to what was measured",
        f"To {schedules} schedules of each record of [simulator.md](simulator.md), which says what the columns mean:",
        f"`{fitted}`",
        f"The engine has `{Latency()}`, of earlier records.",
        table(of_all),
        *(["## Each model from what was fitted to the others", table(of_others)] if of_others else []),
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    typer.run(main)
