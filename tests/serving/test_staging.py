"""Rows of a lane's own host memory: what they are padded with, and on how many cores."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from opara_server.engine.spec import TensorSpec
from opara_server.serving.staging import HostRows, OwnRows

ROWS = 8
IDS = TensorSpec("ids", "int32", (3,), 5, 9)  # padding is 5

batches = st.lists(
    st.tuples(st.integers(0, ROWS), st.integers(0, ROWS), st.integers(0, ROWS)).map(sorted), min_size=1, max_size=12
)


def memory(spec: TensorSpec, rows: int) -> torch.Tensor:
    return torch.full((rows * spec.row_bytes,), 7, dtype=torch.uint8)


@given(batches)
def test_what_follows_a_batch_s_rows_is_padding_whatever_came_before(batches: list[tuple[int, int, int]]) -> None:
    """``direct`` rows come to the device by another way: nothing is written to their place."""
    memory_of_all = memory(IDS, ROWS)
    rows, seen = OwnRows(memory_of_all, IDS, ROWS), memory_of_all.numpy().view(np.int32).reshape(ROWS, 3)
    for number, (direct, count, bucket) in enumerate(batches, 100):
        source = np.full((count - direct, 3), number, np.int32).tobytes()
        rows.fill(direct, source, 0, count - direct)
        rows.pad(count, bucket)
        assert (seen[direct:count] == number).all()
        assert (seen[count:bucket] == 5).all()


def test_what_is_padding_already_is_not_written_again() -> None:
    bytes_of_all = memory(IDS, ROWS)
    rows = OwnRows(bytes_of_all, IDS, ROWS)
    rows.pad(0, ROWS)
    bytes_of_all.fill_(1)
    rows.fill(0, bytes(2 * IDS.row_bytes), 0, 2)
    rows.pad(1, ROWS)
    seen = bytes_of_all.numpy().view(np.int32).reshape(ROWS, 3)
    assert seen[:3, 0].tolist() == [0, 5, 0x01010101]


_PAD = """
import os, torch
torch.set_num_threads(3)
from opara_server.engine.spec import TensorSpec
from opara_server.serving.staging import HostRows
spec = TensorSpec("x", "float16", (1 << 20,))
rows = HostRows(torch.empty(2 * spec.row_bytes, dtype=torch.uint8), spec)
def threads(): return len(os.listdir("/proc/self/task"))
before = threads()
rows.pad(0, 2)
after = threads()
torch.empty(1 << 20).fill_(1.0)
print(after - before, threads() - after)
"""


def test_padding_wakes_no_other_threads() -> None:
    """Of PyTorch's, which spin while they wait for more, on cores that others need."""
    done = subprocess.run([sys.executable, "-c", _PAD], capture_output=True, text=True, check=True)
    new, of_an_ordinary_fill = map(int, done.stdout.split())
    assert (new, of_an_ordinary_fill) == (0, 2)


def test_rows_that_others_write_to_are_padded_each_time() -> None:
    bytes_of_all = memory(IDS, ROWS)
    rows = HostRows(bytes_of_all, IDS)
    for _ in range(2):
        rows.pad(6, ROWS)
        assert bytes_of_all.numpy().view(np.int32).reshape(ROWS, 3)[6:].tolist() == [[5] * 3] * 2
        bytes_of_all.fill_(1)
