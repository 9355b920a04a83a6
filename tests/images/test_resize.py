"""Resizing equals Pillow's, which the published protocol uses."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from veilray.images.resize import resize


@pytest.fixture
def levels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (60, 81), dtype=np.uint8)


@pytest.mark.parametrize("size", [(17, 23), (60, 30), (128, 200)])
def test_8_bit_images_equal_the_published_preprocessing(levels: np.ndarray, size: tuple[int, int]) -> None:
    expected = np.asarray(Image.fromarray(levels).resize(size[::-1]), dtype=np.float32) / 255.0
    resized = resize(np.float32(levels / 255.0), height=size[0], width=size[1], bit_depth=8)
    assert resized.dtype == np.float32
    assert np.array_equal(np.rint(resized * 255), np.rint(expected * 255))
    np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [(17, 23), (128, 200)])
def test_deeper_images_agree_within_the_rounding_of_the_8_bit_path(size: tuple[int, int]) -> None:
    # Smooth and away from black and white: there the 8-bit path also clips between its two passes.
    waves = np.outer(np.sin(np.arange(60) / 7), np.cos(np.arange(81) / 9))
    pixels = np.float32(np.rint(127 + 90 * waves) / 255.0)
    deep = resize(pixels, height=size[0], width=size[1], bit_depth=12)
    flat = resize(pixels, height=size[0], width=size[1], bit_depth=8)
    assert deep.min() >= 0.0
    assert deep.max() <= 1.0
    assert np.abs(deep - flat).max() <= 1.5 / 255
    assert len(np.unique(deep)) > 256


def test_shrinking_averages_rather_than_skips() -> None:
    stripes = np.tile(np.float32([0.0, 1.0]), (64, 32))
    shrunk = resize(stripes, height=16, width=16, bit_depth=16)
    np.testing.assert_allclose(shrunk[:, 2:-2], 0.5, atol=0.02)


def test_a_constant_stays_constant() -> None:
    flat = np.full((33, 47), 1000 / 4095, np.float32)
    np.testing.assert_allclose(resize(flat, height=64, width=20, bit_depth=12), flat[0, 0], atol=1e-6)


def test_the_same_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).random((9, 7), dtype=np.float32)
    assert np.array_equal(resize(pixels, height=9, width=7, bit_depth=4), pixels)
