"""Latency by percentile, one curve for each run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from opara_client.inputs import InputError
from opara_client.perf_report import Report, load_name

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise InputError("--plot needs matplotlib: pip install 'opara-serve[perf]'") from error


def plot(reports: Sequence[Report], path: Path) -> None:
    """Writes the figure in the format of the path's suffix; raises InputError where it cannot.

    The horizontal axis is 1 / (1 - share), logarithmic, as HdrHistogram's plots have it: each nine takes as much room.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="percentile", ylabel="latency, ms")
    for report in reports:
        total = max(1, report.answered)
        below = [0, *accumulate(count for _, count in report.histogram)][:-1]
        axes.step(
            [total / (total - count) for count in below],
            [upper_us / 1e3 for upper_us, _ in report.histogram],
            where="post",
            label=f"{load_name(report)}: {report.answers_per_s:.0f} OK/s",
        )
    shares = {"50": 2, "90": 10, "99": 100, "99.9": 1000, "99.99": 10_000}
    axes.set_xticks(list(shares.values()), list(shares))
    axes.set_xlim(left=1)
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    axes.set_title(" and ".join(dict.fromkeys(f"{report.mode} loop" for report in reports)))
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--plot {path}: {error}") from error
