"""The likeness: copies are near, other images are not."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from veilray.exchange.ledger.likeness import (
    LIKENESS_BYTES,
    NEAR,
    as_words,
    distances,
    is_near,
    likeness,
    mirrored,
)
from veilray.images.phantom import chest_phantom
from veilray.images.radiograph import FloatImage, to_levels, to_pixels


def _apart(one: FloatImage, two: FloatImage) -> int:
    return int(distances(as_words(likeness(one))[None], as_words(likeness(two)))[0])


def _jpeg(pixels: FloatImage) -> FloatImage:
    room = io.BytesIO()
    Image.fromarray(to_levels(pixels, np.uint8)).save(room, "JPEG", quality=60)
    return to_pixels(np.asarray(Image.open(room)))


def _scaled(pixels: FloatImage) -> FloatImage:
    return np.clip(np.asarray(Image.fromarray(pixels).resize((150, 130), Image.Resampling.BICUBIC)), 0, 1)


COPIES: list[Callable[[FloatImage], FloatImage]] = [_jpeg, _scaled, lambda pixels: np.round(pixels * 63) / 63]


def test_bits_are_the_signs_of_cosine_sums() -> None:
    pixels = np.random.default_rng(1).random((32, 32)).astype(np.float32)
    at = np.arange(32)
    waves = np.cos(np.pi * at[:, None] * (2 * at[None, :] + 1) / 64)
    sums = waves @ pixels.astype(np.float64) @ waves.T
    order = sorted(itertools.product(range(32), range(32)), key=sum)[1:257]
    bits = np.array([sums[place] > 0 for place in order])
    look = likeness(pixels)
    assert len(look) == LIKENESS_BYTES
    assert np.array_equal(np.unpackbits(np.frombuffer(look, np.uint8)).astype(bool), bits)


def test_distances_count_bits() -> None:
    looks = np.stack([as_words(bytes(32)), as_words(b"\xff" * 32), as_words(b"\x01" + bytes(31))])
    assert distances(looks, as_words(bytes(32))).tolist() == [0, 256, 1]


def test_mirror_images_and_inverted_ones_are_foreseen() -> None:
    pixels = np.random.default_rng(2).random((96, 64)).astype(np.float32)
    made = [pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1]]
    assert mirrored(likeness(pixels)) == [likeness(image) for image in made]
    assert is_near(np.array([0, NEAR, NEAR + 1, 128, 255 - NEAR, 256 - NEAR, 256])).tolist() == [
        True,
        True,
        False,
        False,
        False,
        True,
        True,
    ]
    # All but the signs of sums that are zero turn round.
    assert _apart(pixels, 1 - pixels) == 256


def test_copies_of_a_phantom_are_near_and_other_phantoms_are_not() -> None:
    images = [chest_phantom(patient=patient, follow_up=0, seed=3, size=192) for patient in range(6)]
    for pixels in images:
        assert all(_apart(pixels, copy(pixels)) <= NEAR for copy in COPIES)
    assert all(_apart(one, two) > NEAR for one, two in itertools.combinations(images, 2))


@pytest.mark.slow
@pytest.mark.real
def test_real_follow_ups_are_told_apart_and_their_copies_are_not(real_data: Path) -> None:
    files = sorted((real_data / "nih256").glob("*.png"))[:60]
    images = [to_pixels(np.asarray(Image.open(file).convert("L"))) for file in files]
    for pixels in images:
        assert all(_apart(pixels, copy(pixels)) <= NEAR for copy in COPIES)
    assert all(_apart(one, two) > NEAR for one, two in itertools.combinations(images, 2))


@pytest.mark.parametrize("shape", [(1, 1), (7, 900), (2000, 3)])
def test_images_of_any_shape_have_one(shape: tuple[int, int]) -> None:
    assert len(likeness(np.full(shape, 0.5, np.float32))) == LIKENESS_BYTES
