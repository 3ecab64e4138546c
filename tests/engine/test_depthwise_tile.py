"""Which tiles depthwise layers are computed in."""

from __future__ import annotations

from math import prod

from hypothesis import given
from hypothesis import strategies as st

from opara_server.engine.rewrites.depthwise_tile import CHANNELS, Layer, grid, places, tile

sizes = st.integers(1, 60)
layers = st.builds(
    Layer,
    rows=st.integers(1, 64),
    channels=st.integers(2, 700),
    size=st.tuples(sizes, sizes),
    out_size=st.tuples(sizes, sizes),
    taps=st.tuples(st.integers(1, 49), st.integers(1, 7)),
    stride=st.just((1, 1)),
    padding=st.just((0, 0)),
    dilation=st.just((1, 1)),
    relu_before=st.booleans(),
    relu_after=st.booleans(),
    itemsize=st.sampled_from([2, 4]),
)


@given(layers, st.integers(1, 150))
def test_blocks_cover_a_layer_and_no_more(layer: Layer, multiprocessors: int) -> None:
    chosen = tile(layer, multiprocessors)
    along, across = grid(layer, chosen)
    assert (along - 1) * chosen.places < places(layer, chosen.per_place) <= along * chosen.places
    assert (across - 1) * CHANNELS < layer.channels <= across * CHANNELS
    assert places(layer, chosen.per_place) * chosen.per_place >= layer.rows * prod(layer.out_size)
    for side in (chosen.places, chosen.per_place, chosen.split, chosen.warps):
        assert side.bit_count() == 1
    assert chosen.split < 2 * layer.taps[0]


def test_threads_of_small_layers_share_filters_and_those_of_large_layers_pixels() -> None:
    """One of NASNet-A-large, on an H200."""
    sides = (11, 11), (11, 11), (5, 5), (1, 1), (2, 2), (1, 1)
    small, large = (tile(Layer(rows, 672, *sides, True, False, 2), 132) for rows in (1, 32))
    assert small.split > large.split == 1
    assert large.per_place > 2
    assert small.places < large.places
