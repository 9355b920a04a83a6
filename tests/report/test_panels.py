"""Panels: the detail that is magnified, and the colours of a difference."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from veilray.evaluation.panels import Panel
from veilray.report.panels import busiest_square, difference_limit, view


def panel(clean: np.ndarray, output: np.ndarray) -> Panel:
    return Panel(
        image_id="a",
        role="best",
        level="20 %",
        noisy=clean,
        clean=clean,
        outputs={"net": output},
        psnr={"net": 30.0},
    )


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_the_detail_holds_the_structure_of_the_clean_image() -> None:
    clean = np.zeros((64, 64), dtype=np.float32)
    clean[30:36:2, 40:46] = 1.0
    square = busiest_square(clean)
    assert square.side == 16
    assert square.top <= 30
    assert square.top + square.side >= 35
    assert square.left <= 40
    assert square.left + square.side >= 46


def test_edges_at_the_border_do_not_draw_the_detail_to_them() -> None:
    clean = np.zeros((64, 64), dtype=np.float32)
    clean[:3] = np.indices((3, 64)).sum(axis=0) % 2
    clean[32, 32] = 0.5
    square = busiest_square(clean)
    assert 16 < square.top <= 32
    assert 16 < square.left <= 32


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 200), (255, 256)])
def test_the_detail_lies_within_images_of_any_shape(shape: tuple[int, int]) -> None:
    clean = np.random.default_rng(2).random(shape, dtype=np.float32)
    square = busiest_square(clean)
    assert square.cut(clean).shape == (square.side, square.side)


def test_the_detail_is_cut_from_where_the_mark_is() -> None:
    clean = np.random.default_rng(3).random((40, 60), dtype=np.float32)
    drawn = view(panel(clean, clean), ["net"], limit=0.1)
    left, top = drawn.square.percent["left"] * 60 / 100, drawn.square.percent["top"] * 40 / 100
    whole, detail = pixels(drawn.tiles[0].image), pixels(drawn.tiles[0].detail)
    np.testing.assert_array_equal(detail, whole[round(top) :, round(left) :][: len(detail), : len(detail)])


def test_tiles_are_noisy_each_arm_clean_then_differences() -> None:
    clean = np.full((8, 8), 0.5, dtype=np.float32)
    captions = [tile.caption for tile in view(panel(clean, clean), ["net"], limit=0.1).tiles]
    assert captions == ["Noisy input", "net", "Clean", "net − clean"]


def test_too_bright_is_red_too_dark_is_blue_and_equal_is_nearly_white() -> None:
    clean = np.full((8, 8), 0.5, dtype=np.float32)
    output = clean.copy()
    output[0], output[1] = 0.6, 0.4
    colours = pixels(view(panel(clean, output), ["net"], limit=0.1).tiles[-1].image).astype(int)
    assert colours[0, 0, 0] > colours[0, 0, 2] + 50
    assert colours[1, 0, 2] > colours[1, 0, 0] + 50
    assert colours[4, 4].min() > 240


def test_the_colour_scale_covers_the_differences() -> None:
    clean = np.zeros((10, 10), dtype=np.float32)
    assert difference_limit([panel(clean, clean + np.float32(0.123))]) == pytest.approx(0.13)
    assert difference_limit([]) == pytest.approx(0.01)


def test_large_images_are_shown_smaller_with_the_detail_at_full_size() -> None:
    clean = np.random.default_rng(4).random((1024, 768), dtype=np.float32)
    tile = view(panel(clean, clean), ["net"], limit=0.1).tiles[0]
    assert pixels(tile.image).shape == (512, 384)
    assert pixels(tile.detail).shape == (192, 192)
