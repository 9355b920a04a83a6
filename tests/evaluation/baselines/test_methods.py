"""Classical methods: the library calls they wrap, what they gain on noisy phantoms, and the clamp's mean map."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

from veilray.errors import UsageError
from veilray.evaluation.baselines import methods
from veilray.evaluation.baselines.cases import decibels
from veilray.evaluation.baselines.methods import METHODS, KnownNoise, Smoother, Strength, at_edge, grid, parse_methods
from veilray.images.phantom import chest_phantom
from veilray.images.radiograph import FloatImage
from veilray.obfuscation.mean_map import inverse_mean_map, mean_map
from veilray.obfuscation.noise import add_gaussian

NOISE = KnownNoise(mean=0.1, std=0.3, clip=True)
STRENGTHS: dict[Smoother, Strength] = {
    "bm3d": {"profile": "np", "factor": 0.9},
    "nlm": {"patch": 5, "distance": 6, "factor": 0.4},
    "tv": {"eps": 2e-4, "factor": 1.6},
    "wavelet": {"rule": "BayesShrink", "shifts": 3, "factor": 1.0},
}
SMOOTHERS = list(STRENGTHS)


@pytest.fixture(scope="module")
def clean() -> FloatImage:
    return chest_phantom(patient=1, follow_up=0, seed=3, size=64)


@pytest.fixture(scope="module")
def noisy(clean: FloatImage) -> FloatImage:
    generator = torch.Generator().manual_seed(1)
    return add_gaussian(torch.from_numpy(clean), mean=NOISE.mean, std=NOISE.std, generator=generator).numpy()


def _needs(smoother: Smoother) -> None:
    if smoother == "bm3d":
        pytest.importorskip("bm3d")


@pytest.mark.parametrize("smoother", SMOOTHERS)
def test_each_method_gains_and_the_mean_map_gains_more(
    smoother: Smoother, clean: FloatImage, noisy: FloatImage
) -> None:
    _needs(smoother)
    reached = {}
    for name in (smoother, f"{smoother}-naive"):
        estimate = methods.restore(noisy, METHODS[name], noise=NOISE, strength=STRENGTHS[smoother])
        assert (estimate.shape, estimate.dtype) == (clean.shape, np.float32)
        assert 0.0 <= estimate.min() <= estimate.max() <= 1.0
        reached[name] = decibels(estimate, clean)
    # Against the noisy image less its mean, which is the least that naive denoising has to beat.
    before = decibels(np.clip(noisy - np.float32(0.1), 0, 1), clean)
    assert reached[f"{smoother}-naive"] > before + 3.0
    assert reached[smoother] > reached[f"{smoother}-naive"] + 0.3


def test_smoothers_are_the_library_calls_they_wrap(noisy: FloatImage) -> None:
    def ours(smoother: Smoother, **strength: float | int | str) -> FloatImage:
        return methods.smooth(noisy, smoother=smoother, std=0.2, strength=strength)

    theirs = denoise_tv_chambolle(noisy, weight=0.2)
    np.testing.assert_allclose(ours("tv", factor=1.0, eps=2e-4), theirs, atol=1e-6)
    theirs = denoise_nl_means(noisy, patch_size=5, patch_distance=6, h=0.1, sigma=0.2, fast_mode=True)
    np.testing.assert_allclose(ours("nlm", factor=0.5, patch=5, distance=6), theirs, atol=1e-6)
    for rule in ("BayesShrink", "VisuShrink"):
        options = {"wavelet": "db4", "mode": "soft", "wavelet_levels": 3, "rescale_sigma": False}
        theirs = denoise_wavelet(noisy, sigma=0.1, method=rule, **options)
        np.testing.assert_allclose(ours("wavelet", factor=0.5, rule=rule, shifts=0), theirs, atol=1e-6)


def test_bm3d_is_the_package_s(noisy: FloatImage) -> None:
    bm3d = pytest.importorskip("bm3d")
    ours = methods.smooth(noisy, smoother="bm3d", std=0.2, strength={"factor": 0.5, "profile": "np"})
    np.testing.assert_allclose(ours, bm3d.bm3d(noisy, sigma_psd=0.1), atol=1e-6)


def test_cycle_spinning_averages_over_shifts_without_joining_opposite_sides(noisy: FloatImage) -> None:
    options = {"sigma": 0.2, "wavelet": "db4", "wavelet_levels": 3, "method": "BayesShrink", "rescale_sigma": False}
    padded = np.pad(noisy, 1, mode="symmetric")
    total = np.zeros_like(padded)
    for down in (0, 1):
        for right in (0, 1):
            shifted = np.roll(padded, (down, right), (0, 1))
            total += np.roll(denoise_wavelet(shifted, **options), (-down, -right), (0, 1))
    ours = methods.smooth(
        noisy, smoother="wavelet", std=0.2, strength={"factor": 1.0, "rule": "BayesShrink", "shifts": 1}
    )
    np.testing.assert_allclose(ours, total[1:-1, 1:-1] / 4, atol=1e-6)


def test_small_and_odd_images_keep_their_size() -> None:
    image = np.random.default_rng(0).random((9, 13), dtype=np.float32)
    for smoother, strength in STRENGTHS.items():
        if smoother == "bm3d" and importlib.util.find_spec("bm3d") is None:
            continue
        smoothed = methods.smooth(image, smoother=smoother, std=0.2, strength=strength)
        assert smoothed.shape == image.shape
        assert np.isfinite(smoothed).all()


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.1), (0.1, 0.3), (0.0, 0.05), (-0.2, 0.2), (0.5, 0.02)])
def test_the_mean_is_taken_off_by_the_inverse_of_the_mean_map(mean: float, std: float) -> None:
    noise = KnownNoise(mean=mean, std=std, clip=True)
    x = torch.rand((50, 40), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = mean_map(x, mean=mean, std=std)
    back = methods.take_off_mean(expected.numpy().astype(np.float32), naive=False, noise=noise)
    # Where the map is flat, x is lost in the rounding of g(x), for the exact inverse as for the table.
    again = mean_map(torch.from_numpy(back).double(), mean=mean, std=std)
    torch.testing.assert_close(again, expected, atol=1e-6, rtol=0)
    steep = (inverse_mean_map(expected + 1e-6, mean=mean, std=std) - x).abs() < 1e-5
    torch.testing.assert_close(torch.from_numpy(back).double()[steep], x[steep], atol=2e-5, rtol=0)
    outside = methods.take_off_mean(np.array([[-0.5, 1.5]], dtype=np.float32), naive=False, noise=noise)
    np.testing.assert_array_equal(outside, [[0.0, 1.0]])


def test_without_the_clamp_both_forms_are_one(noisy: FloatImage) -> None:
    noise = KnownNoise(mean=0.1, std=0.2, clip=False)
    forms = [methods.take_off_mean(noisy, naive=naive, noise=noise) for naive in (False, True)]
    np.testing.assert_array_equal(*forms)
    np.testing.assert_allclose(forms[0], np.clip(noisy - 0.1, 0, 1), atol=1e-7)


def test_names_are_read_and_unknown_ones_answered_with_those_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [method.name for method in parse_methods("tv, nlm-naive,tv")] == ["tv", "nlm-naive"]
    for wrong in ("median", "tv,bm4d", "", ","):
        with pytest.raises(UsageError, match="bm3d, bm3d-naive, nlm, nlm-naive, tv, tv-naive, wavelet, wavelet-naive"):
            parse_methods(wrong)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs bm3d.*extra 'bm3d'"):
        parse_methods("bm3d")
    with pytest.raises(UsageError, match=r"needs scikit-image.*extra 'baselines'"):
        parse_methods("wavelet-naive")


def test_a_licence_is_spoken_of_where_bm3d_is_used() -> None:
    assert "non-commercial" in methods.licence_notice([METHODS["tv"], METHODS["bm3d-naive"]])
    assert methods.licence_notice([METHODS["tv"]]) == ""


@pytest.mark.parametrize("smoother", SMOOTHERS)
def test_every_strength_of_a_grid_is_one_that_the_smoother_takes(smoother: Smoother) -> None:
    names = [set(strength) for strength in grid(smoother)]
    assert all(one == set(STRENGTHS[smoother]) for one in names)
    keys = [tuple(sorted(strength.items())) for strength in grid(smoother)]
    assert len(set(keys)) == len(keys)
    ends = [at_edge(smoother, strength) for strength in grid(smoother)]
    assert any(ends)
    assert not all(ends)
