"""Similarities that need no training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.privacy.alexnet import random_weights
from tests.privacy.planted import anonymous, recognisable

from veilray.privacy.features import (
    AlexNetFeatures,
    banks,
    cosine,
    gradient_histograms,
    registered_correlation,
    similarities,
    standardised,
    thumbnails,
)
from veilray.privacy.pairs import all_pairs
from veilray.privacy.roc import Round, verification


def _scene(seed: int, size: int = 38) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32)


def test_a_shift_of_up_to_three_pixels_is_undone() -> None:
    scene = _scene(0)
    near, far = scene[3:35, 3:35], scene[6:38, 0:32]
    found = registered_correlation(np.stack([near, far, _scene(1)[:32, :32]]))
    assert found[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert (found == found.T).all()
    # The best of 49 correlations of unrelated noise over 26 x 26 pixels stays below 5 standard deviations.
    assert abs(found[0, 2]) < 5 / 26


def test_a_shift_of_four_pixels_is_not() -> None:
    scene = _scene(0, 40)
    found = registered_correlation(np.stack([scene[4:36, 4:36], scene[0:32, 4:36]]))
    assert found[0, 1] < 5 / 26


def test_thumbnails_and_gradients_do_not_hang_on_exposure() -> None:
    images = torch.from_numpy(recognisable(2, each=1))
    brighter = 0.2 + 0.5 * images
    torch.testing.assert_close(thumbnails(images), thumbnails(brighter), atol=1e-3, rtol=0)
    torch.testing.assert_close(gradient_histograms(images), gradient_histograms(brighter), atol=1e-3, rtol=0)


def test_gradients_are_counted_by_cell_and_direction_as_by_hand() -> None:
    image = np.random.default_rng(3).random((16, 16)).astype(np.float32)
    cells = np.zeros((2, 2, 9))
    for y in range(16):
        for x in range(16):
            across = image[y, x + 1] - image[y, x - 1] if 0 < x < 15 else 0.0
            down = image[y + 1, x] - image[y - 1, x] if 0 < y < 15 else 0.0
            place = math.atan2(down, across) % math.pi / math.pi * 9
            low = int(place) % 9
            strength = math.hypot(across, down) / 64
            cells[y // 8, x // 8, low] += strength * (1 - place % 1)
            cells[y // 8, x // 8, (low + 1) % 9] += strength * (place % 1)
    block = np.concatenate([cells[y, x] for y in (0, 1) for x in (0, 1)])
    block = np.minimum(block / np.linalg.norm(block), 0.2)
    found = gradient_histograms(torch.from_numpy(image[None]), side=16, cell=8)[0].numpy().reshape(36)
    np.testing.assert_allclose(np.sort(found), np.sort(block / np.linalg.norm(block)), atol=1e-5)
    np.testing.assert_allclose(found.reshape(4, 9)[0], (block / np.linalg.norm(block))[:9], atol=1e-5)


@pytest.mark.slow
def test_floors_recognise_who_can_be_recognised_and_nobody_else() -> None:
    patients = np.repeat(np.arange(15), 2)
    pairs = all_pairs(patients)
    for images, planted in ((recognisable(15, each=2), True), (anonymous(15, each=2), False)):
        tensor = torch.from_numpy(images)
        thumbs = registered_correlation(thumbnails(tensor).numpy())
        gradients = cosine(gradient_histograms(tensor).numpy())
        # A shift by a pixel of these small images is most of a cell of gradients.
        for floor, near in ((thumbs, 0.97), (gradients, 0.8)):
            low, high = (near, 1.0) if planted else (0.3, 0.7)
            scored = Round(pairs=pairs, scores=floor[pairs.first, pairs.second])
            found = verification([scored], patients, seeds=1, seed=0)
            assert found is not None
            assert low <= found.auc.value <= high


def test_similarities_are_inner_products_of_roots_at_length_one() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=(40, 7))).astype(np.float32)
    found = similarities(lambda rows: values[rows].reshape(-1, 1, 7), 40, {"x": lambda images: [images.flatten(1)]})
    roots = np.sqrt(values)
    roots /= np.linalg.norm(roots, axis=1, keepdims=True)
    roots -= roots.mean(axis=0)
    expected = roots @ roots.T
    np.testing.assert_allclose(found["x"], expected / np.trace(expected) * 40, atol=2e-2)


def _random_alexnet() -> AlexNetFeatures:
    return AlexNetFeatures(random_weights())


def test_alexnet_on_grey_is_alexnet_on_three_equal_channels() -> None:
    alexnet = _random_alexnet()
    images = torch.from_numpy(recognisable(2, each=1))
    told = alexnet(images, side=64)
    assert [part.shape[1] for part in told] == [36 * channels for channels in (192, 384, 256, 256)]
    grey = torch.nn.functional.interpolate(images[:, None], size=(64, 64), mode="area")
    maps = standardised(grey[:, 0])[:, None].expand(-1, 3, -1, -1)
    steps = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 11, 4, 2), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2),
        torch.nn.Conv2d(64, 192, 5, padding=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(6),
    )  # fmt: skip
    for place, index in ((0, 0), (3, 3)):
        steps[place].weight.data = alexnet._weights[f"features.{index}.weight"]
        steps[place].bias.data = alexnet._weights[f"features.{index}.bias"]
    with torch.no_grad():
        torch.testing.assert_close(told[0], steps(maps).flatten(1), rtol=1e-4, atol=1e-4)


def test_without_weights_thumbnails_and_gradients_are_left() -> None:
    plain = {"thumbnails", "gradients"}
    assert set(banks(None, fine=True)) == plain
    assert set(banks(_random_alexnet(), fine=False)) == plain | {"AlexNet at 56", "AlexNet at 112"}
    told = banks(_random_alexnet(), fine=True)
    assert set(told) == plain | {"AlexNet at 56", "AlexNet at 112", "AlexNet at 224"}
    images = torch.from_numpy(recognisable(2, each=1))
    assert {len(bank(images)) for name, bank in told.items() if "AlexNet" in name} == {4}
