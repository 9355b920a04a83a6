"""An image and its original are told from two radiographs, through noise, blanks and another contrast."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from veilray.exchange.reattaching.resemblance import ALIKE, resemblance
from veilray.images.phantom import chest_phantom

PATIENTS = [chest_phantom(patient=patient, follow_up=0, seed=5, size=128) for patient in range(6)]


@pytest.mark.parametrize("original", PATIENTS[:3])
def test_an_image_resembles_its_original(original: np.ndarray) -> None:
    noisy = np.clip(original + np.random.default_rng(0).normal(0, 0.3, original.shape), 0, 1).astype(np.float32)
    blanked = original.copy()
    blanked[:16, :32] = 1 - blanked[:16, :32].round()
    for image in (original, 0.5 * original + np.float32(0.2), original[::2, ::2], noisy, blanked):
        assert resemblance(image, original) >= ALIKE


def test_nobody_resembles_another_patient_or_nothing() -> None:
    assert max(resemblance(one, other) for one, other in permutations(PATIENTS, 2)) < ALIKE
    assert resemblance(1 - PATIENTS[0], PATIENTS[0]) < 0
    assert resemblance(np.zeros_like(PATIENTS[0]), PATIENTS[0]) == 0


def test_it_is_the_correlation_of_what_fits_by_a_plain_computation() -> None:
    random = np.random.default_rng(1)
    one, other = random.random((16, 16), dtype=np.float32), random.random((16, 16), dtype=np.float32)
    other = 0.7 * one + 0.3 * other
    one[0, :6] += 5  # of 256, 12 are set aside; these 6 are among them
    kept = np.ones(256, bool)
    for _ in range(3):
        slope, offset = np.polyfit(other.ravel()[kept], one.ravel()[kept], 1)
        off = np.abs(one.ravel() - slope * other.ravel() - offset)
        kept = off <= np.sort(off)[243]
    assert not kept[:6].any()
    expected = np.corrcoef(one.ravel()[kept], other.ravel()[kept])[0, 1]
    large = [np.kron(image, np.ones((8, 8), np.float32)) for image in (one, other)]
    assert resemblance(*large) == pytest.approx(expected, abs=2e-3)


def test_small_noisy_images_are_compared_by_blocks_that_noise_leaves_standing() -> None:
    small = [chest_phantom(patient=patient, follow_up=0, seed=5, size=64) for patient in range(6)]
    random = np.random.default_rng(0)
    noisy = [np.clip(image + random.normal(0, 0.2, image.shape), 0, 1).astype(np.float32) for image in small]
    assert min(resemblance(*pair) for pair in zip(noisy, small, strict=True)) >= ALIKE
