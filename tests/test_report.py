"""What `opara-server plan` prints."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from opara_server.engine.plan import BucketPlan, Candidate, Plan
from opara_server.report import print_plan


def test_what_was_rejected_has_no_speed_up() -> None:
    sequential = Candidate("aten", "sequential", False, 1, 0, 90.0, 100.0, 1024)
    rejected = Candidate("aten", "heft", False, 2, 3, 40.0, 47.6, 1024, "slower than sequential when measured again")
    bucket = BucketPlan(1, "sequential", False, "aten", 3, 2, 2, 8.0, 1, 0, 100.0, 100.0, 1024, (sequential, rejected))
    console = Console(file=StringIO(), width=100)
    print_plan(console, Plan("m", "cpu", "a processor", (bucket,)))
    assert isinstance(console.file, StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "→ sequential 1 0 90.0 100.0 0.00 1.00×" in lines
    assert "✗ heft 2 3 40.0 47.6 0.00" in lines
    assert "✗ heft: slower than sequential when measured again" in lines
