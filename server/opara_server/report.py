"""A plan for a person's eyes: what was measured per batch size, and what was chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from opara_server.engine.options import ATEN
from opara_server.engine.plan import BucketPlan, Candidate, Plan
from opara_server.observe.logs import news_only

log = logging.getLogger(__name__)


@contextmanager
def progress_on(console: Console) -> Iterator[Callable[[str, float], None]]:
    """Takes what is being done and the share done, from any thread: a log line for what is new, or on a terminal a bar,
    which goes away when all is done. stdout is left alone."""
    if not console.is_terminal:
        yield news_only(lambda what, share: log.info("%3.0f %% %s", 100 * share, what))
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bars:
        task = bars.add_task("starting", total=1.0)

        def show(what: str, share: float) -> None:
            bars.update(task, description=escape(what), completed=share)
            if share >= 1.0:
                bars.stop()

        yield show


def print_plan(console: Console, plan: Plan) -> None:
    console.print(f"[bold]{escape(plan.model)}[/] on {plan.device} ({escape(plan.device_name)})")
    if plan.fallback_reason:
        console.print(f"[yellow]runs as one sequential graph:[/] {escape(plan.fallback_reason)}")
    if plan.reused:
        console.print("measured before; verified and timed once more")
    for bucket in plan.buckets:
        console.print()
        console.print(_graph_line(bucket))
        console.print(_bucket_table(bucket))
        console.print(_serving_line(bucket))
        for rejection in _rejections(bucket):
            console.print(rejection)
    console.print()
    console.print(Text(_legend(), style="dim"))


def _legend() -> str:
    from opara_server.engine.select import AS_FAST, LEAST_MARGIN, OVER  # noqa: PLC0415 - imports torch

    return (
        "The table has times of the search, in which all were measured in turns; below it stands what serves (→), "
        "measured again with sequential beside it. What serves beats it both times, in the search by more than the "
        f"noise, at least {LEAST_MARGIN:.0%}; of those within {AS_FAST:.0%} of the fastest it is the one with the "
        f"least memory. To one that needs more memory than it should {OVER:.0%} of its time are added."
    )


def _graph_line(bucket: BucketPlan) -> RenderableType:
    ratio = "" if bucket.memory_ratio is None else f" ({bucket.memory_ratio:.2f}× the sequential graph's)"
    return Text(
        f"batch size {bucket.batch_size}: {bucket.operators} operators ({bucket.lowering}), width {bucket.width}, "
        f"depth {bucket.depth}, longest path {bucket.longest_path_us:.1f} µs, "
        f"at most {bucket.peak_bytes / 2**20:.2f} MiB of activations{ratio}, "
        f"keeps {bucket.steady_bytes / 2**20:.2f} MiB"
    )


def _serving_line(bucket: BucketPlan) -> Text:
    simplest = bucket.measured_us == bucket.sequential_us
    beside = "" if simplest else f", sequential {bucket.sequential_us:.1f} µs beside it"
    return Text(f"→ {_label(bucket)} serves: {bucket.measured_us:.1f} µs{beside}, {bucket.speedup:.2f}×")


def _bucket_table(bucket: BucketPlan) -> Table:
    """80 columns are enough for it. What is rejected is told below it, where its reason has room."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=1)
    table.add_column("policy", overflow="fold")
    for title in ("streams", "syncs", "predicted\nµs", "measured\nµs", "peak\nMiB", "speed-up"):
        table.add_column(title, justify="right", no_wrap=True)
    for candidate in bucket.candidates:
        style = "bold green" if _chosen(bucket, candidate) else "dim" if candidate.rejected else None
        table.add_row(*_cells(bucket, candidate), style=style)
    return table


def _rejections(bucket: BucketPlan) -> Iterator[Text]:
    for candidate in bucket.candidates:
        if candidate.rejected:
            yield Text(f"✗ {_label(candidate)}: {candidate.rejected}", style="red")


def _cells(bucket: BucketPlan, candidate: Candidate) -> tuple[str, ...]:
    measured = candidate.measured_us > 0  # what was refused before it was timed has no time
    sequential_us = bucket.candidates[0].measured_us
    return (
        "→" if _chosen(bucket, candidate) else "✗" if candidate.rejected else "",
        _label(candidate),
        str(candidate.streams),
        str(candidate.synchronisations),
        f"{candidate.predicted_us:.1f}",
        f"{candidate.measured_us:.1f}" if measured else "",
        f"{candidate.peak_bytes / 2**20:.2f}",
        f"{sequential_us / candidate.measured_us:.2f}×" if measured and not candidate.rejected else "",
    )


def _label(candidate: Candidate | BucketPlan) -> str:
    lowering = "" if candidate.lowering in {ATEN, "whole"} else f"{candidate.lowering} "
    return f"{lowering}{candidate.policy}{' compact' if candidate.compact else ''}"


def _chosen(bucket: BucketPlan, candidate: Candidate) -> bool:
    return candidate.key == bucket.key
