"""From cells to tables and plots, without a GPU and without a measurement."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import figures, tables
from bench.cells import Cell, CellKey, SystemResult, load_cells, save_cell
from bench.plots import draw_all
from bench.provenance import coverage, sources
from bench.report import RESULTS, details, report, write_report
from bench.selection import ALL_MODELS, PAPER_MODELS, REQUIRED_MODELS
from tests.bench.synthetic import ENVIRONMENT, cell, result


def by_key(*cells: Cell) -> dict[CellKey, Cell]:
    return {one.key: one for one in cells}


def rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table below its header; every row must have as many as the header."""
    lines = [[part.strip() for part in line.strip("|").split(" | ")] for line in table.splitlines()]
    assert {len(line) for line in lines} == {len(lines[0])}
    return lines[2:]


def test_the_committed_report_is_what_the_committed_cells_say() -> None:
    cells, text = load_cells(RESULTS / "engine"), (RESULTS / "engine.md").read_text()
    plots = re.findall(r"\((\w+\.svg)\)", text)
    assert all((RESULTS / plot).is_file() for plot in plots)
    assert report(cells, figures.load_allocations(RESULTS / "allocation_time.json"), plots) == text
    assert details(cells) == (RESULTS / "engine_cells.md").read_text()


def test_the_main_table_has_every_required_cell() -> None:
    ran = cell("googlenet", compile_reduce_overhead=250.0)
    found = rows(tables.main_table(by_key(ran, cell("vit_b16", "float32", 4))))
    assert len(found) == 28 + 1
    assert sum(row[3] == "not run" for row in found) == 27
    (googlenet,) = [row for row in found if row[:3] == ["GoogLeNet", "float16", "1"]]
    assert googlenet[3:8] == ["960.0", "400.0", "not run", "not run", "250.0"]
    assert googlenet[8:12] == ["250.0", "not run", "200.0 (default)", "100.0"]
    assert googlenet[12:16] == ["4.00×", "2.00×", "2.00×", "2.00×"]
    assert googlenet[-2:] == ["1e-04", "1e-04"]


def test_what_failed_says_so_and_counts_for_nothing() -> None:
    broken = Cell(CellKey("bert_base", "float16", 1), ENVIRONMENT, failed="SIGSEGV: no luck")
    no_baseline = cell("t5_small")
    no_baseline = replace(no_baseline, systems={**no_baseline.systems, "sequential": SystemResult(failed="boom")})
    wrong = cell("deepfm")
    wrong = replace(
        wrong, systems={**wrong.systems, "ours": replace(wrong.systems["ours"], verified=False, detail="1")}
    )
    cells = by_key(broken, no_baseline, wrong)
    table = tables.main_table(cells)
    rows(table)
    assert "failed: SIGSEGV: no luck" in table
    assert "100.0 WRONG" in table
    assert tables.unverified(cells) == ["deepfm float16 ×1, opara-serve: 1"]
    assert "boom" in tables.cell_table(no_baseline)
    assert tables.over_sequential(no_baseline) is None
    assert rows(tables.geometric_means(cells))[0][-1] == "1 of 6"


def test_geometric_means() -> None:
    cells = by_key(*(cell(model, ours=time) for model, time in zip(PAPER_MODELS, [50, 200] * 3, strict=True)))
    means = rows(tables.geometric_means(cells))
    assert means[0] == ["float16", "1", "4.00×", "2.00×", "6 of 6"]
    assert ["float16", "8", "not run", "not run", "0 of 6"] in means


def test_the_best_torch_compile_is_the_fastest_of_all_its_ways() -> None:
    many = cell("googlenet", graph_default=150.0, graph_freezing=120.0, compile_reduce_overhead=150.0)
    assert tables.over_compiled(many) == pytest.approx(1.2)
    assert "120.0 (freezing)" in tables.main_table(by_key(many))
    called = cell("googlenet", graph_default=150.0, compile_reduce_overhead=130.0)
    assert tables.over_compiled(called) == pytest.approx(130 / 120), "of host times"
    assert tables.compiled_over(called, "eager") == pytest.approx(960 / 130)


def test_the_error_of_the_cuda_graph_stands_beside_ours() -> None:
    one = cell("googlenet")
    worse = {**one.systems, "ours": result(100.0, error=9e-2), "sequential": result(400.0, error=5e-2)}
    without = {name: found for name, found in worse.items() if name != "sequential"}
    shown = [rows(tables.main_table(by_key(replace(one, systems=each))))[0][-2:] for each in (worse, without)]
    assert shown == [["9e-02", "5e-02"], ["9e-02", "–"]]


def test_what_was_not_run_is_counted() -> None:
    broken = Cell(CellKey("bert_base", "float16", 1), ENVIRONMENT, failed="SIGSEGV")
    said = coverage(by_key(cell("googlenet"), cell("vit_b16", batch=4, nimble=1.0), broken))
    assert "1 of the 28 required cells were run, and 2 of all 156 (13 models × 6 batch sizes × 2 dtypes)." in said
    assert "Required and without a result: Inception-v3 float16 ×1, " in said
    assert "BERT-base float16 ×1, HRNet" in said
    assert (
        "in how many of these cells: operators in sequence 2, wavefront 2, Nimble 1, compile: reduce-overhead 2, "
        in said
    )
    assert coverage({}).startswith("0 of the 28 ")
    assert "eager" not in coverage({})


def test_cells_of_other_sources_are_listed() -> None:
    old, new = ({**ENVIRONMENT, "engine": digest} for digest in ("old", "new"))
    usual = [replace(cell(model), environment=new) for model in ("t5_small", "vit_b16")]
    assert sources(by_key(*usual)) == "Digest of the engine's sources: new in 2 of 2 cells."
    assert sources(by_key(replace(cell("bert_base"), environment=old), *usual)) == (
        "Digest of the engine's sources: new in 2 of 3 cells. Of other sources, 1: old in BERT-base float16 ×1."
    )
    assert sources({}) == ""
    known = replace(cell("deepfm"), environment={**ENVIRONMENT, "engine": "0566349b1bdb"})
    assert sources(by_key(known)) == "Digest of the engine's sources: 0566349b1bdb of commit a66d3c3 in 1 of 1 cells."
    assert "## BERT-base float16 ×1 (2026-01-02, engine sources old)" in details(
        by_key(replace(cell("bert_base"), environment=old))
    )


def test_what_was_not_run_is_no_bar(tmp_path: Path) -> None:
    def without(system: str, of: Cell) -> Cell:
        return replace(of, systems={name: found for name, found in of.systems.items() if name != system})

    def drawn(*cells: Cell) -> str:
        draw_all(by_key(*cells), {}, tmp_path)
        return (tmp_path / "speedup.svg").read_text()

    required = [cell(model) for model in REQUIRED_MODELS]
    whole = drawn(*required)
    assert "float16 ×1, Some GPU" in whole
    assert "not run" not in whole
    lacking = drawn(without("opara", required[0]), without("sequential", required[1]), *required[3:])
    assert lacking.count(">not run<") == 1, "Opara of the first"
    assert lacking.count(">CUDA Graph not run<") == 2, "the second has no baseline, the third was not run"
    assert whole.count("<path") - lacking.count("<path") >= 1 + 2 * 3, "a bar each"


def test_what_fusion_brings_is_told_apart_from_what_streams_do() -> None:
    whole = cell("googlenet", aten=380.0)
    whole = replace(whole, systems={**whole.systems, "ours": result(100.0, one_stream_us=190.0)})
    (row,) = tables.parts_table({whole.key: whole, cell("vit_b16").key: cell("vit_b16")}).splitlines()[2:]
    said = [part.strip() for part in row.strip("|").split("|")]
    assert said == ["GoogLeNet", "float16", "1", "400.0", "380.0", "250.0", "190.0", "100.0", "2.00×", "1.90×"]
    assert "## What fusion brings" in report({whole.key: whole}, {}, [])
    assert "## What fusion brings" not in report({}, {}, [])


def test_the_worst_cell_is_named() -> None:
    said = tables.worst_cell(by_key(cell("googlenet"), cell("bert_base", ours=220.0)))
    assert said == (
        "1 of 2 cells are more than 3 % slower than the best other system. The worst is BERT-base float16 ×1: "
        "0.909× as fast as one graph: default."
    )


def test_the_matrix_has_every_cell_there_could_be() -> None:
    found = rows(tables.matrix(by_key(cell("resnet50", batch=4), cell("mine:MODEL", batch=4)), "float16"))
    assert len(found) == len(ALL_MODELS) + 1
    assert sum(text == "not run" for row in found for text in row) == 6 * len(found) - 2
    assert found[-1][3] == "4.00× / 2.00×"


def test_figure_2_tells_what_the_order_is_worth() -> None:
    first, *published = rows(figures.figure_2(by_key(cell("inception_v3"))))
    assert first == ["Inception-v3", "float16", "depth first", "200.0", "250.0", "25.0%", "+5.0%"]
    assert [row[5] for row in published] == ["up to 29.0%", "up to 10.3%"]


def test_figure_5_sets_ours_beside_the_papers() -> None:
    cells = by_key(cell("googlenet", "float32"), cell("googlenet", "float16", eager=1.0))
    (googlenet, *others) = rows(figures.figure_5a(cells))
    assert googlenet[:4] == ["GoogLeNet", "float32", "2.29 / 2.25", "– / 2.65"]
    assert googlenet[6:10] == ["3.56 / 3.83", "1.60 / 1.68", "4.36", "8.00"]
    assert all(row[1] == "not run" for row in others)
    (googlenet, *_) = rows(figures.figure_5b(cells))
    assert googlenet[2:6] == ["25% → 25% → 25%", "39% → 62%", "4.0 → 4.0 → 4.0", "139 → 200"]


def test_the_plots_have_the_papers_values(tmp_path: Path) -> None:
    draw_all(by_key(cell("googlenet", "float32")), {}, tmp_path)
    orders, memory = ((tmp_path / f"{name}.svg").read_text() for name in ("fig2_launch_order", "fig5b_memory"))
    assert "the paper, at most, RTX 2080 SUPER" in orders
    assert "the paper, at most, A100-PCIe-40GB" in orders
    assert "memory, MiB" in memory
    assert ">the paper<" in memory


def test_a_plot_has_room_for_any_name(tmp_path: Path) -> None:
    one = cell("googlenet")
    for length in (20, 40, 80):
        key = CellKey(f"a.package.of.models:{'M' * length}", "float32", 2)
        draw_all({key: replace(one, key=key)}, {}, tmp_path)  # matplotlib warns of a layout without room: an error here
        orders = (tmp_path / "fig2_launch_order.svg").read_text()
        assert key.model in orders
        assert float(re.findall(r'<svg [^>]*?width="([\d.]+)pt"', orders, re.DOTALL)[0]) > 4 * length


def test_figures_8_and_9_go_by_batch() -> None:
    first, second, *_ = rows(figures.figures_8_and_9(by_key(cell("inception_v3"), cell("inception_v3", batch=2))))
    assert first == ["1", "1.60", "4.00", "not run", "not run", "1.41", "–"]
    assert second == ["2", "1.60", "4.00", "not run", "not run", "1.34", "1.52"]


def test_table_1(tmp_path: Path) -> None:
    assert figures.load_allocations(tmp_path / "none.json") == {}
    (bert, *_) = rows(figures.table_1(by_key(cell("bert_base")), {"bert_base": figures.Allocation(148, 0.01, 0.4)}))
    assert bert == ["BERT-base", "148", "0.010", "0.400", "40×", "0.58 / 20.8", "36×", "500 / 4.25"]


def test_the_whole_report(tmp_path: Path) -> None:
    for one in (*map(cell, ALL_MODELS), cell("inception_v3", batch=8), cell("googlenet", "float32")):
        save_cell(tmp_path / "cells", one)
    write_report(tmp_path / "cells", tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    plots = [name for name in written if name.endswith(".svg")]
    text = written["engine.md"].decode()
    assert sorted(plots) == sorted(re.findall(r"!\[[^]]+\]\(([^)]+)\)", text))
    assert len(plots) == 9
    assert all(b"<svg" in written[name] and len(written[name]) < 200_000 for name in plots)
    assert "gpu Some GPU; torch 2.11; date 2026-01-02" in text
    assert "Every output was right, by the rule above." in text
    assert "moved by at most 0.4%." in text
    assert "this engine's tuning budget 300 s; timing, per system, 0.3 s." in text
    assert "## ViT-B/16 float16 ×1" in written["engine_cells.md"].decode()
    write_report(tmp_path / "cells", tmp_path)
    assert written == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_without_matplotlib_a_command_ends_with_one_line() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import runpy; runpy.run_module('bench.engine')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=280)
    assert ended.returncode == 1
    assert ended.stderr == "not installed: matplotlib; run: pip install -e '.[bench]'\n"


def test_a_report_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "speedup.svg").write_text("of an earlier run")
    write_report(tmp_path / "cells", tmp_path)
    text = (tmp_path / "engine.md").read_text()
    assert "Nothing was run." in text
    assert "speedup.svg" not in text
    assert not (tmp_path / "speedup.svg").exists()


def test_cells_of_several_machines_are_told_apart() -> None:
    other = replace(cell("deepfm"), environment=ENVIRONMENT | {"gpu": "Another GPU"})
    assert "gpu Another GPU, Some GPU" in report(by_key(cell("googlenet"), other), {}, [])
