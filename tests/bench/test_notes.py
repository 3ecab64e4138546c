"""What is said beside the tables is made from the cells, and says nothing where nothing was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import notes
from bench.cells import WITH_DEVICE_TIMES, Cell, CellKey
from bench.provenance import settings
from bench.selection import REQUIRED_MODELS
from tests.bench.synthetic import ENVIRONMENT, SETTINGS, cell, result


def by_key(*cells: Cell) -> dict[CellKey, Cell]:
    return {one.key: one for one in cells}


def moved(one: Cell, drift: float) -> Cell:
    return replace(one, settings={**one.settings, "drift": drift})


def test_cells_whose_baseline_moved_much_are_listed_with_both_ratios() -> None:
    said = notes.drift(by_key(moved(cell("googlenet"), 1.25), moved(cell("deepfm"), 0.99), cell("bert_base")))
    assert "moved by at most 25.0%; by more than 3% in GoogLeNet float16 ×1, by +25.0% (" in said
    assert "4.00× over it by the second timing, 3.20× by the first)" in said
    assert "DeepFM" not in said
    assert notes.drift(by_key(moved(cell("deepfm"), 0.9))).count("-10.0%") == 1


@pytest.mark.parametrize(
    ("opara", "said"),
    [
        (149.0, "1.490× as fast: by that measure the floor of 1.50 is missed by 0.7%, the goal of 1.80 is missed by"),
        (160.0, "the floor of 1.50 is reached, the goal of 1.80 is missed by 11.1%, "),
        (190.0, "the floor of 1.50 is reached, the goal of 1.80 is reached, "),
        (200.0, "the mean of the paper's six is 2.83× instead of 4.00×."),
    ],
)
def test_berts_gain_is_told_without_its_mask(opara: float, said: str) -> None:
    text = notes.masks(by_key(cell("bert_base", opara=opara, nimble=200.0), cell("googlenet")))
    assert text.startswith("Of BERT-base's 4.00×")
    assert said in text


def test_torch_compile_s_share_of_the_mask_is_told() -> None:
    bert = cell("bert_base", nimble=200.0, graph_default=600.0, ours=400.0)
    assert "torch.compile" not in notes.masks(by_key(bert, cell("googlenet")))  # another GPU's
    bert = replace(bert, environment=ENVIRONMENT | {"gpu": "NVIDIA H200"})
    text = notes.masks(by_key(bert, cell("googlenet")))
    assert "had 500 µs for torch.compile in one graph" in text
    assert "opara-serve is 1.25× as fast instead of 1.50×" in text
    assert text.endswith("over torch.compile 1.58× instead of 1.73×.")


def test_the_rule_for_cells_of_the_format_before_is_told() -> None:
    assert notes.older(by_key(cell("googlenet"))) == ""
    old = replace(cell("googlenet"), format=WITH_DEVICE_TIMES)
    assert notes.older(by_key(old, cell("deepfm"))).startswith("In the 1 cells of format 1 repeated runs")


def test_another_reference_than_float64_is_told_with_its_reason() -> None:
    one = replace(cell("googlenet"), settings={"reference": "float64"})
    assert notes.references(by_key(one)) == ""
    other = replace(cell("deepfm"), settings={"reference": "eager PyTorch (TypeError: no doubles)"})
    assert notes.references(by_key(one, other)) == (
        "Not against float64 but DeepFM float16 ×1: eager PyTorch (TypeError: no doubles)."
    )


def test_the_mean_is_told_without_its_outlier() -> None:
    usual = [cell(model, batch=8) for model in REQUIRED_MODELS if model != "deepfm"]
    sizes = [cell("deepfm", batch=batch, sequential=time) for batch, time in ((1, 300.0), (8, 6400.0), (32, 500.0))]
    said = notes.outlier(by_key(*usual, *sizes))
    assert "takes 6400 µs, at batch 1 300 and at batch 32 500" in said
    assert "five of the paper's 4.00× instead of 6.35×" in said
    assert "six of the required 4.00× instead of 5.94×" in said


def test_an_error_twice_the_baselines_is_told() -> None:
    one = cell("inception_v3", "float32")
    systems = {**one.systems, "ours": result(100.0, error=9.1e-2), "sequential": result(400.0, error=4.6e-2)}
    assert "Inception-v3 float32 ×1 9.1e-02 against 4.6e-02" in notes.errors(by_key(replace(one, systems=systems)))
    small = {**one.systems, "ours": result(100.0, error=9e-4), "sequential": result(400.0, error=4e-4)}
    assert notes.errors(by_key(replace(one, systems=small))) == ""


def test_what_figure_5_compares_is_told_where_it_is_shown() -> None:
    assert "BERT-base and T5-small" in notes.masks_in_figure_5(by_key(cell("t5_small")))
    assert notes.masks_in_figure_5(by_key(cell("googlenet"))) == ""


def test_memory_is_held_against_both_sequential_graphs() -> None:
    made = cell("googlenet", aten=300.0)
    systems = {**made.systems, "ours": replace(made.systems["ours"], peak_bytes=5 << 18)}
    systems["aten"] = replace(made.systems["aten"], peak_bytes=5 << 17)
    other = cell("deepfm")
    said = notes.memory({made.key: replace(made, systems=systems), other.key: other})
    assert "over the CUDA Graph's it needs 1.00 to 1.25 times, more than 1.1 in GoogLeNet float16 ×1 (1.25);" in said
    assert "where these were run (1 of 2 cells) 2.00 to 2.00 times, more than 1.1 in GoogLeNet" in said
    assert "more than" not in notes.memory({other.key: other}).split(". ")[1]


def test_a_graph_that_is_faster_than_its_path_is_told_of() -> None:
    made = cell("googlenet")
    quick = replace(made.systems["ours"], longest_path_us=125.0)
    assert notes.below_the_path({made.key: made}) == ""
    assert "GoogLeNet float16 ×1 (0.80)" in notes.below_the_path(
        {made.key: replace(made, systems={**made.systems, "ours": quick})}
    )


def test_of_nothing_nothing_is_said() -> None:
    every = (
        notes.older,
        notes.references,
        notes.drift,
        notes.masks,
        notes.outlier,
        notes.masks_in_figure_5,
        notes.errors,
        notes.memory,
        notes.below_the_path,
        settings,
    )
    assert [note({}) for note in every] == [""] * len(every)


def test_settings_that_differ_are_counted() -> None:
    other = replace(cell("deepfm"), settings={**SETTINGS, "tuning_budget_s": 60.0})
    assert settings(by_key(cell("googlenet"), cell("t5_small"), other)) == (
        "Set for each cell: this engine's tuning budget 60 s in 1 cells, 300 s in 2 cells; timing, per system, 0.3 s."
    )
