"""The filter's predictions against the library's own mean map, other libraries, known probabilities and simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from veilray.obfuscation.mean_map import mean_map
from veilray.privacy.matched_filter import (
    clamped_moments,
    gallery_success,
    inverse_mean_images,
    log_pair_error,
    mean_images,
    orthant_probability,
)


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.2), (0.0, 1.0), (-0.1, 0.05)])
def test_the_moments_of_a_clamped_pixel(mean: float, std: float) -> None:
    x = np.linspace(0.0, 1.0, 11)
    first, second = clamped_moments(x, mean=mean, std=std, clip=True)
    drawn = np.clip(x + mean + std * np.random.default_rng(1).standard_normal((400_000, 11)), 0.0, 1.0)
    assert first == pytest.approx(mean_map(torch.from_numpy(x), mean=mean, std=std).numpy(), abs=1e-12)
    assert second == pytest.approx(drawn.var(axis=0), rel=0.02)


def test_images_go_through_the_mean_map_and_back() -> None:
    x = np.random.default_rng(2).random((3, 8, 8)).astype(np.float32)
    mapped = mean_images(x, mean=0.1, std=0.2, clip=True)
    assert mapped == pytest.approx(mean_map(torch.from_numpy(x), mean=0.1, std=0.2).numpy(), abs=1e-5)
    assert inverse_mean_images(mapped, mean=0.1, std=0.2, clip=True) == pytest.approx(x, abs=1e-4)


def test_an_orthant_is_the_known_probability() -> None:
    # m normal values with correlation 1/2 are differences of m + 1 independent ones: the first is least in 1 of m + 1.
    for count in (2, 5, 15):
        assert orthant_probability(np.zeros(count), 0.5 + 0.5 * np.eye(count)) == pytest.approx(
            1 / (count + 1), abs=2e-3
        )


def test_an_orthant_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    root = rng.standard_normal((6, 8))
    covariance, limits = root @ root.T, rng.uniform(0.0, 4.0, 6)
    scipys = float(multivariate_normal.cdf(limits, mean=np.zeros(6), cov=covariance))
    assert orthant_probability(limits, covariance) == pytest.approx(scipys, abs=3e-3)


@pytest.mark.parametrize("clip", [False, True])
def test_the_success_in_a_gallery_is_what_simulation_gives(clip: bool) -> None:
    rng = np.random.default_rng(5)
    gallery = rng.random((8, 100)) * 0.3 + 0.3
    mean, std, trials = 0.1, 0.6, 20_000
    seen, variances = clamped_moments(gallery, mean=mean, std=std, clip=clip)
    noisy = gallery[2] + mean + std * rng.standard_normal((trials, 100))
    noisy = np.clip(noisy, 0.0, 1.0) if clip else noisy
    distances = (noisy**2).sum(axis=1, keepdims=True) - 2 * noisy @ seen.T + (seen**2).sum(axis=1)
    found = float((distances.argmin(axis=1) == 2).mean())
    predicted = gallery_success(seen, variances[2], 2)
    assert 0.3 < predicted < 0.95  # or nothing would be compared
    assert found == pytest.approx(predicted, abs=0.015)
    pairs = (distances < distances[:, 2:3]).mean(axis=0)
    errors = np.exp(log_pair_error(np.delete(seen, 2, axis=0), seen[2], variances[2]))
    assert np.delete(pairs, 2) == pytest.approx(errors, abs=0.015)


def test_images_that_are_the_same_leave_a_guess() -> None:
    image = np.random.default_rng(6).random(64)
    assert gallery_success(np.stack([image, image]), np.full(64, 0.01), 0) == 0.5
    other = np.stack([image, 1.0 - image, image])
    assert gallery_success(other, np.full(64, 0.01), 0) == pytest.approx(0.5, abs=1e-3)
    assert np.exp(log_pair_error(image[None], image, np.full(64, 0.01))) == pytest.approx([0.5])


@pytest.mark.parametrize("mean", [-0.1, 0.0, 0.1])
@pytest.mark.parametrize("std", [1e-3, 1e-4, 1e-6])
def test_noise_that_hides_nothing_leaves_certainty_or_a_guess(std: float, mean: float) -> None:
    # Two that differ from the true image well within the range, and one only near an end of it, where the clamp of
    # noise with a mean hides whatever differs.
    for extreme, guessed in ((0.95, mean > 0.0), (0.05, mean < 0.0)):
        true = np.full(16, 0.5)
        true[5] = extreme
        brighter, darker, hidden = true.copy(), true.copy(), true.copy()
        brighter[3], darker[7], hidden[5] = 0.6, 0.2, round(extreme)
        gallery = np.stack([true, brighter, darker, hidden])
        seen, variances = clamped_moments(gallery, mean=mean, std=std, clip=True)
        assert gallery_success(seen, variances[0], 0) == pytest.approx(0.5 if guessed else 1.0, abs=1e-3)
        errors = np.exp(log_pair_error(seen[1:], seen[0], variances[0]))
        assert errors == pytest.approx([0.0, 0.0, 0.5 if guessed else 0.0], abs=1e-6)


@pytest.mark.parametrize("std", [1e-3, 1e-4, 1e-6])
def test_images_that_differ_only_where_the_true_one_never_varies_are_told_apart(std: float) -> None:
    true = np.ones(4)
    other = np.array([1.0, 1.0, 1.0, 0.2])
    seen, variances = clamped_moments(np.stack([true, other]), mean=0.1, std=std, clip=True)
    assert not variances[0].any()
    assert gallery_success(seen, variances[0], 0) == 1.0
    assert log_pair_error(seen[1:], seen[0], variances[0]).tolist() == [-np.inf]
    assert log_pair_error(seen[1:].astype(np.float32), seen[0].astype(np.float32), variances[0]).tolist() == [-np.inf]
