"""What `opara-server plan` prints."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from opara_server.engine.plan import BucketPlan, Candidate, Plan
from opara_server.report import print_plan

SEQUENTIAL = Candidate("aten", "sequential", False, 1, 0, 90.0, 100.0, 1024)


def printed(bucket: BucketPlan) -> list[str]:
    console = Console(file=StringIO(), width=80)
    print_plan(console, Plan("m", "cpu", "a processor", (bucket,)))
    assert isinstance(console.file, StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def test_what_was_rejected_has_no_speed_up() -> None:
    rejected = Candidate("aten", "heft", False, 2, 3, 40.0, 47.6, 1024, "slower than sequential when measured again")
    bucket = BucketPlan(1, "sequential", False, "aten", 3, 2, 2, 8.0, 1, 0, 100.0, 100.0, 1024, (SEQUENTIAL, rejected))
    lines = printed(bucket)
    assert "→ sequential 1 0 90.0 100.0 0.00 1.00×" in lines
    assert "→ sequential serves: 100.0 µs, 1.00×" in lines
    assert "✗ heft 2 3 40.0 47.6 0.00" in lines
    assert "✗ heft: slower than sequential when measured again" in lines


def test_what_was_measured_again_stands_beside_what_the_search_measured() -> None:
    sequential = Candidate("aten", "sequential", False, 1, 0, 90.0, 100.0, 1024, again_us=130.0)
    chosen = Candidate("fused", "critical_path:4", False, 4, 30, 40.0, 50.0, 1024, again_us=65.0)
    other = Candidate("aten", "heft", False, 2, 3, 40.0, 62.5, 1024)
    bucket = BucketPlan(
        1, chosen.policy, False, chosen.lowering, 3, 2, 2, 8.0, 4, 30, 65.0, 130.0, 1024, (sequential, chosen, other)
    )
    lines = printed(bucket)
    assert "sequential 1 0 90.0 100.0 0.00 1.00×" in lines
    assert "→ fused critical_path:4 4 30 40.0 50.0 0.00 2.00×" in lines
    assert "heft 2 3 40.0 62.5 0.00 1.60×" in lines
    assert "→ fused critical_path:4 serves: 65.0 µs, sequential 130.0 µs beside it, 2.00×" in lines
    legend = " ".join(lines)
    assert "more than the noise, at least 1%; of those within 2% of the fastest" in legend
