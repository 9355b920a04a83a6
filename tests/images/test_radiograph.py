"""The affine map: there and back is exact, whatever the range and the polarity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilray.images.radiograph import IntensityMap, map_stored, restore_stored, to_levels, to_pixels


@st.composite
def maps(draw: st.DrawFn) -> IntensityMap:
    bits = draw(st.integers(1, 16))
    signed = bits > 1 and draw(st.booleans())
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return IntensityMap(low=low, high=high, inverted=draw(st.booleans()), slope=draw(st.sampled_from([1.0, -2.5])))


@pytest.mark.slow
@given(maps())
def test_every_stored_value_survives_the_way_there_and_back(intensity: IntensityMap) -> None:
    stored = np.arange(intensity.low, intensity.high + 1, dtype=np.int32)
    pixels = map_stored(stored, intensity)
    assert pixels.dtype == np.float32
    assert (pixels.min(), pixels.max()) == (0.0, 1.0)
    assert np.array_equal(restore_stored(pixels, intensity), stored)


@pytest.mark.slow
@given(maps())
def test_the_map_is_the_stated_formula(intensity: IntensityMap) -> None:
    stored = np.linspace(intensity.low, intensity.high, 50).round().astype(np.int32)
    unit = (stored - intensity.low) / (intensity.high - intensity.low)
    expected = 1 - unit if intensity.inverted else unit
    np.testing.assert_allclose(map_stored(stored, intensity), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("value", [-1, 1024])
def test_a_value_outside_the_range_never_wraps(value: int) -> None:
    with pytest.raises(ValueError, match="leave"):
        map_stored(np.array([[value]]), IntensityMap(low=0, high=1023))


def test_the_way_back_clips_what_a_network_overshoots() -> None:
    pixels = np.array([[-0.5, 1.5]], np.float32)
    assert restore_stored(pixels, IntensityMap(low=-8, high=7)).tolist() == [[-8, 7]]
    assert restore_stored(pixels, IntensityMap(low=-8, high=7, inverted=True)).tolist() == [[7, -8]]


@pytest.mark.parametrize("bits", range(1, 17))
def test_levels_of_a_cohort_keep_every_stored_value(bits: int) -> None:
    intensity = IntensityMap(low=0, high=2**bits - 1)
    stored = np.arange(2**bits)
    levels = to_levels(map_stored(stored, intensity), np.uint8 if bits <= 8 else np.uint16)
    assert np.array_equal(restore_stored(to_pixels(levels), intensity), stored)
