"""Every policy on the same operators, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

from bench.engine_aten import described, main
from bench.report import RESULTS
from opara_server.engine.graph import OperatorGraph
from opara_server.engine.policies import POLICIES


def test_every_policy_is_measured_and_verified(tmp_path: Path) -> None:
    name = "tests.bench.tiny:BRANCHES"
    main([name], "float32", 2, "cpu", repeat=1, output=tmp_path / "out.json", graphs=tmp_path / "graphs")
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    sequential, *others = result["candidates"]
    assert (sequential["policy"], sequential["streams"], sequential["speedup"]) == ("sequential", 1, 1.0)
    assert {"sequential", *(row["policy"] for row in others)} >= {"opara", "nimble", "wavefront"} & set(POLICIES)
    assert all(row["verified"] and row["error"] < 1e-5 and row["measured_us"] > 0 for row in result["candidates"])
    text = (tmp_path / "out.md").read_text()
    assert text.count("float32 ×2") == len(result["candidates"])
    assert text.startswith("# Every policy on the same operators\n\ncpu ")
    (saved,) = [json.loads(path.read_text()) for path in (tmp_path / "graphs").iterdir()]
    assert len(OperatorGraph.from_json(saved["graph"])) == result["operators"] == len(saved["profile"]["operators"])


def test_the_committed_table_is_that_of_its_file() -> None:
    data = RESULTS / "engine_aten.json"
    assert data.with_suffix(".md").read_text() == described(json.loads(data.read_text()))
