"""Plans of tiles: each pixel is answered for once, from a tile that sees far enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilray.errors import UsageError
from veilray.inference.tiles import plan_tiles


@pytest.mark.slow
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    stride=st.sampled_from([2, 4, 16]),
    halo=st.integers(0, 4),
    spare=st.integers(1, 9),
    odd=st.integers(0, 1),
)
def test_plans_cover_the_image_once_from_far_enough(
    height: int, width: int, stride: int, halo: int, spare: int, odd: int
) -> None:
    height, width, halo = height * stride, width * stride, halo * stride
    tile = 2 * halo + spare * stride + odd
    tiles = plan_tiles(height, width, tile=tile, halo=halo, stride=stride)
    covered = np.zeros((height, width), dtype=int)
    for one in tiles:
        covered[one.rows.first : one.rows.last, one.columns.first : one.columns.last] += 1
        for axis, length in ((one.rows, height), (one.columns, width)):
            assert 0 <= axis.start <= axis.first < axis.last <= axis.stop <= length
            assert axis.stop - axis.start <= tile
            assert all(edge % stride == 0 for edge in (axis.start, axis.stop, axis.first, axis.last))
            assert axis.start == 0 or axis.first - axis.start >= halo
            assert axis.stop == length or axis.stop - axis.last >= halo
            assert axis.kept == slice(axis.first - axis.start, axis.last - axis.start)
    assert (covered == 1).all()
    assert len({(t.rows.stop - t.rows.start, t.columns.stop - t.columns.start) for t in tiles}) == 1
    smallest_count = -(-height // tile) * -(-width // tile)
    assert len(tiles) >= smallest_count


def test_few_tiles_where_few_do() -> None:
    assert len(plan_tiles(1024, 1024, tile=1024, halo=112, stride=16)) == 1
    assert len(plan_tiles(1824, 1024, tile=1024, halo=112, stride=16)) == 2
    assert len(plan_tiles(1840, 1024, tile=1024, halo=112, stride=16)) == 3


def test_a_tile_smaller_than_its_halos_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 240"):
        plan_tiles(512, 512, tile=239, halo=112, stride=16)
