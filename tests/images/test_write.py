"""PNGs that are written read back bit for bit, by Pillow and by our own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from veilray.images.radiograph import restore_stored
from veilray.images.read import read_radiograph
from veilray.images.write import write_png

levels = st.sampled_from([np.uint8, np.uint16]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(levels)
def test_round_trip(tmp_path: Path, values: np.ndarray) -> None:
    path = tmp_path / "image.png"
    write_png(path, values)
    with Image.open(path) as image:
        assert image.mode == ("L" if values.dtype == np.uint8 else "I;16")
        assert np.array_equal(np.asarray(image), values)
    radiograph = read_radiograph(path)
    assert radiograph.bit_depth == 8 * values.dtype.itemsize
    assert np.array_equal(restore_stored(radiograph.pixels, radiograph.intensity), values)
    assert [entry.name for entry in tmp_path.iterdir()] == ["image.png"]


def test_views_are_written_in_their_own_order(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4)[::-1].T
    write_png(tmp_path / "a.png", values)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), values)


@pytest.mark.parametrize("wrong", [np.zeros((3, 3)), np.zeros((3, 3), np.int16), np.zeros((3, 3, 3), np.uint8)])
def test_only_levels_are_written(tmp_path: Path, wrong: np.ndarray) -> None:
    with pytest.raises(TypeError, match="uint8 or uint16"):
        write_png(tmp_path / "a.png", wrong)
    assert not list(tmp_path.iterdir())
