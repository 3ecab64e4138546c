"""What PyTorch's profiler records, where there is no GPU: nothing that counts, and said so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity

from opara_server.engine.errors import TuningError
from opara_server.engine.kineto import recorded


def test_a_recording_without_kernels_is_an_error() -> None:
    with pytest.raises(TuningError, match="saw no kernel"), recorded(ProfilerActivity.CPU):
        torch.ones(3).add_(1)


def test_without_a_folder_for_temporary_files_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    with pytest.raises(TuningError, match=r"trace cannot be read: .*not there"), recorded(ProfilerActivity.CPU):
        torch.ones(3).add_(1)


@pytest.mark.parametrize(("asked", "told"), [(None, "1"), ("0", "0")], ids=["by itself", "as the user says"])
def test_the_profiler_leaves_cuda_alone_when_it_has_done(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, told: str
) -> None:
    monkeypatch.setenv("TEARDOWN_CUPTI", asked or "")
    if asked is None:
        monkeypatch.delenv("TEARDOWN_CUPTI")
    with pytest.raises(TuningError), recorded(ProfilerActivity.CPU):
        assert os.environ["TEARDOWN_CUPTI"] == told
