"""What our attention kernel is asked to compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opara_server.engine.rewrites.attention_tile import Layer, is_ours, tile

SHARED_BYTES = 227 * 2**10  # of a block on an H100 or H200
LAYERS = st.builds(
    Layer,
    st.integers(1, 64),
    st.integers(1, 32),
    *(st.integers(1, 1024) for _ in range(2)),
    *(st.integers(1, 256) for _ in range(2)),
    st.sampled_from([2, 4]),
)


SMS = 132


def layer(rows: int, queries: int, keys: int, heads: int = 12, width: int = 64, itemsize: int = 2) -> Layer:
    return Layer(rows, heads, queries, keys, width, width, itemsize)


@given(LAYERS)
def test_tiles_are_what_tensor_cores_take_and_fit(asked: Layer) -> None:
    found, width = tile(asked, SMS), max(asked.key_width, asked.value_width)
    assert all(size >= 16 and size & (size - 1) == 0 for size in (found.queries, found.keys))
    assert found.queries < 2 * max(16, asked.queries)
    assert found.keys < 2 * max(16, asked.keys)
    if is_ours(asked):
        assert (found.queries + 2 * found.keys) * width * asked.itemsize <= SHARED_BYTES // 2


@given(LAYERS, st.integers(2, 8))
def test_more_of_what_is_too_much_is_too_much(asked: Layer, times: int) -> None:
    if not is_ours(asked):
        for name in ("rows", "heads", "queries", "keys", "key_width", "value_width"):
            assert not is_ours(replace(asked, **{name: getattr(asked, name) * times}))


@pytest.mark.parametrize(
    ("asked", "queries"),
    [
        (layer(1, 128, 128), 16),
        (layer(1, 32, 128), 16),
        (layer(1, 197, 197), 32),
        (layer(4, 128, 128), 64),
        (layer(32, 128, 128), 64),
        (layer(32, 32, 32), 32),
        (layer(1, 128, 128, itemsize=4), 16),
    ],
    ids=str,
)
def test_few_queries_make_small_tiles_that_see_all_keys_at_once(asked: Layer, queries: int) -> None:
    assert is_ours(asked)
    found = tile(asked, SMS)
    assert found.queries == queries
    assert found.keys >= asked.keys


def test_long_sequences_large_batches_and_wide_heads_are_pytorch_s() -> None:
    assert not is_ours(layer(1, 4096, 4096))
    assert not is_ours(layer(1024, 128, 128))
    assert not is_ours(layer(1, 128, 128, width=256))
