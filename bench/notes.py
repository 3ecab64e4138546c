"""What has to be known to read the suite's figures right: sentences made from the cells. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import geometric_mean

from bench.cells import FLOAT64, WITH_DEVICE_TIMES, Cell, CellKey
from bench.goals import SINGLE
from bench.selection import PAPER_MODELS, REQUIRED_MODELS
from bench.tables import OURS, SEQUENTIAL, Cells, Ratio, cell_name, over_fastest, over_one_graph, over_sequential, title

MUCH = 0.03  # of a time, by which it moved between two timings
MORE, TOLD = 1.5, 1e-2  # times the CUDA Graph's error; errors that are told of at all
IN_SEQUENCE = "aten"
MEMORY = 1.1  # times the sequential graph's peak that a run should need at most
ATEN = ("wavefront", "nimble", "opara")  # schedules of exported operators, which leave the idle masks out
MASKED = ("bert_base", "t5_small")
COMPILED_UNMASKED_US = 500.0  # BERT-base float16 ×1, torch.compile of the exported module: 499 to 502 on another H200
COMPILED_ON = "NVIDIA H200"  # of other GPUs that says nothing


def older(cells: Cells) -> str:
    """By what rule cells of the format before were judged."""
    count = sum(cell.format == WITH_DEVICE_TIMES for cell in cells.values())
    if not count:
        return ""
    return (
        f"In the {count} cells of format {WITH_DEVICE_TIMES} repeated runs had to repeat an output to within what the "
        "error may be; this engine's graphs were held to the bound by its own verification, which also poisons the "
        "memory that they compute in."
    )


def references(cells: Cells) -> str:
    """Where errors are not against float64."""
    found = {key: cell.settings["reference"] for key, cell in cells.items() if "reference" in cell.settings}
    others = [f"{cell_name(key)}: {source}" for key, source in found.items() if source != FLOAT64]
    return f"Not against float64 but {'; '.join(others)}." if others else ""


def drift(cells: Cells) -> str:
    """How far the sequential graph's time moved between the two timings of a cell, and where that was much."""
    moved = {key: cell.settings["drift"] - 1 for key, cell in cells.items() if cell.settings.get("drift")}
    if not moved:
        return ""
    most = max(abs(share) for share in moved.values())
    said = (
        "The sequential graph is timed with what the host drives and again with the graphs, which counts: from the "
        f"first to the second its time moved by at most {most:.1%}"
    )
    much = [
        f"{cell_name(key)}, by {share:+.1%} (opara-serve {ratio:.2f}× over it by the second timing, "
        f"{ratio / (1 + share):.2f}× by the first)"
        for key, share in moved.items()
        if abs(share) > MUCH and (ratio := over_sequential(cells[key])) is not None
    ]
    return f"{said}; by more than {MUCH:.0%} in {'; '.join(much)}." if much else f"{said}."


def masks(cells: Cells) -> str:
    """What speed-ups would be without the masks that BERT's and T5's captured modules compute with."""
    key = CellKey("bert_base", "float16", 1)
    cell = cells.get(key)
    gain, whole = (_over_unmasked(cell), over_sequential(cell)) if cell else (None, None)
    if gain is None or whole is None:
        return ""
    floor, goal = (_reached(gain, asked) for asked in SINGLE[key.model])
    means = [_mean(cells, PAPER_MODELS, 1, ratio) for ratio in (_over_unmasked, over_sequential)]
    unmasked = (
        "the sequential graph of the exported operators, which leave it out,"
        if cell and cell.time_us(IN_SEQUENCE)
        else "the fastest parallel schedule of the exported operators, which leave it out (their sequential graph, "
        "which the floor means, was not timed there),"
    )
    return (
        f"Of {title(key.model)}'s {whole:.2f}× a part is no merit of scheduling or fusion: its eager module, captured, "
        "computes attention with a mask of ones, which the transformers library otherwise leaves out. Over "
        f"{unmasked} in the same cell, opara-serve is {gain:.3f}× as fast: "
        f"by that measure the floor {floor}, the goal {goal}, and with {title('t5_small')} measured like that as well "
        f"the mean of the paper's six is {means[0]:.2f}× instead of {means[1]:.2f}×.{_compiled_unmasked(cells, key)}"
    )


def _compiled_unmasked(cells: Cells, key: CellKey) -> str:
    """The same of torch.compile, where that was measured on such a GPU."""
    own, gain = cells[key].time_us(OURS), over_one_graph(cells[key])
    if own is None or gain is None or cells[key].environment.get("gpu") != COMPILED_ON:
        return ""
    without = COMPILED_UNMASKED_US / own
    mean = _mean(cells, PAPER_MODELS, 1, over_one_graph)
    count = sum(1 for model in PAPER_MODELS if (c := cells.get(CellKey(model, "float16", 1))) and over_one_graph(c))
    return (
        " What torch.compile is given computes the mask as well. Of the exported module, which does not, an earlier "
        f"measurement on an H200 had {COMPILED_UNMASKED_US:.0f} µs for torch.compile in one graph: over that, though "
        f"not side by side, opara-serve is {without:.2f}× as fast instead of {gain:.2f}×, and the mean of the "
        f"paper's six over torch.compile {mean * (without / gain) ** (1 / count):.2f}× instead of {mean:.2f}×."
    )


def _over_unmasked(cell: Cell) -> float | None:
    if cell.key.model not in MASKED:
        return over_sequential(cell)
    return cell.speedup(IN_SEQUENCE, OURS) or over_fastest(cell, ATEN)


def _reached(ratio: float, asked: float) -> str:
    return f"of {asked:.2f} is reached" if ratio >= asked else f"of {asked:.2f} is missed by {1 - ratio / asked:.1%}"


def outlier(cells: Cells) -> str:
    """That one baseline carries a mean."""
    sizes = {batch: cells.get(CellKey("deepfm", "float16", batch)) for batch in (1, 8, 32)}
    times = {batch: time for batch, cell in sizes.items() if cell and (time := cell.time_us(SEQUENTIAL)) is not None}
    if len(times) < len(sizes):
        return ""
    means = "; ".join(
        f"of the {count} {_mean(cells, models, 8, over_sequential):.2f}× instead of "
        f"{_mean(cells, (*models, 'deepfm'), 8, over_sequential):.2f}×"
        for count, models in (
            ("other five of the paper's", _without(PAPER_MODELS)),
            ("other six of the required", _without(REQUIRED_MODELS)),
        )
    )
    return (
        f"At batch 8 DeepFM's CUDA Graph takes {times[8]:.0f} µs, at batch 1 {times[1]:.0f} and at batch 32 "
        f"{times[32]:.0f}: that one baseline carries the means of float16 ×8 over the CUDA Graph. Without DeepFM they "
        f"are: {means}."
    )


def masks_in_figure_5(cells: Cells) -> str:
    """That a column of Fig. 5(a) is not of parallelism alone."""
    if not any(key.model in MASKED for key in cells):
        return ""
    named = " and ".join(title(model) for model in MASKED)
    return (
        f"*Opara over CUDA Graph* of {named} is not of parallelism alone: the CUDA Graph also computes masks that hide "
        "nothing or never change, the exported operators, which Opara schedules, do without. All schedules on the same "
        "operators: [engine_aten.md](engine_aten.md)."
    )


def errors(cells: Cells) -> str:
    """Where ours is much further from float64 than the CUDA Graph is."""
    found = {key: (own, other) for key, cell in cells.items() if (both := _errors(cell)) for own, other in [both]}
    much = [
        f"{cell_name(key)} {own:.1e} against {other:.1e}"
        for key, (own, other) in found.items()
        if own > MORE * other and own > TOLD
    ]
    if not much:
        return ""
    return (
        f"More than half as much again as the CUDA Graph's is ours, of errors above {TOLD:.0e}, in {'; '.join(much)}: "
        "other kernels round differently, and a deep network of random weights enlarges that; it is within three times "
        "eager PyTorch's own."
    )


def memory(cells: Cells) -> str:
    """How much more than a sequential graph a run of ours needs, beside what is asked."""
    peaks = _peaks(cells, SEQUENTIAL)
    if not peaks:
        return ""
    said = (
        f"A run should need at most {MEMORY:.1f} times the activations of the sequential graph. Measured, with "
        f"libraries' workspaces, over the CUDA Graph's it needs {_range(peaks)}"
    )
    unmasked = _peaks(cells, IN_SEQUENCE)
    if unmasked:
        said += (
            "; over those of the exported operators in sequence, which do without what a module computes for nothing, "
            f"where these were run ({len(unmasked)} of {len(cells)} cells) {_range(unmasked)}"
        )
    return (
        f"{said}. The engine's own limit allows as much as a lowering's own operators need in sequence, where that is "
        "more, and more to what is 5 % faster."
    )


def _peaks(cells: Cells, name: str) -> dict[CellKey, float]:
    """What a run of ours allocates at most, over the same of the system ``name``."""
    pairs = {key: (cell.right(OURS), cell.right(name)) for key, cell in cells.items()}
    return {
        key: own.peak_bytes / other.peak_bytes
        for key, (own, other) in pairs.items()
        if own and other and own.peak_bytes and other.peak_bytes
    }


def _range(ratios: Mapping[CellKey, float]) -> str:
    above = [f"{cell_name(key)} ({ratio:.2f})" for key, ratio in sorted(ratios.items()) if ratio > MEMORY]
    told = f", more than {MEMORY:.1f} in {', '.join(above)}" if above else ""
    return f"{min(ratios.values()):.2f} to {max(ratios.values()):.2f} times{told}"


def below_the_path(cells: Cells) -> str:
    """That a graph takes less than its longest path is no mistake."""
    found = [
        f"{cell_name(key)} ({own.median_us / own.longest_path_us:.2f})"
        for key, cell in sorted(cells.items())
        if (own := cell.right(OURS)) and own.median_us and own.longest_path_us and own.median_us < own.longest_path_us
    ]
    if not found:
        return ""
    return (
        f"Less time than the longest path takes {', '.join(found)}: its kernels were profiled one by one, and take "
        "less in the graph."
    )


def _errors(cell: Cell) -> tuple[float, float] | None:
    own, other = cell.right(OURS), cell.right(SEQUENTIAL)
    return (own.error, other.error) if own and other and own.error and other.error else None


def _without(models: Sequence[str]) -> tuple[str, ...]:
    return tuple(model for model in models if model != "deepfm")


def _mean(cells: Cells, models: Sequence[str], batch: int, ratio: Ratio) -> float:
    found = (cells.get(CellKey(model, "float16", batch)) for model in models)
    return geometric_mean([value for cell in found if cell and (value := ratio(cell)) is not None])
