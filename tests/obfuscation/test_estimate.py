"""The estimate of an image's noise against noise that was put there, and its moments against drawn ones."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from veilray.errors import UsageError
from veilray.images.phantom import chest_phantom
from veilray.images.radiograph import FloatImage, to_levels, to_pixels
from veilray.images.read import read_radiograph
from veilray.obfuscation.estimate import _moments, estimate_noise_std
from veilray.obfuscation.noise import add_gaussian

STDS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)


def _noisy(clean: FloatImage, std: float, *, mean: float = 0.1, clip: bool = True, seed: int = 0) -> FloatImage:
    generator = torch.Generator().manual_seed(seed)
    return add_gaussian(torch.from_numpy(clean), mean=mean, std=std, clip=clip, generator=generator).numpy()


@pytest.mark.parametrize(("size", "tolerance"), [(128, 0.15), (256, 0.1)])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("mean", [0.0, 0.1])
def test_it_is_as_accurate_as_it_says_on_phantoms(size: int, tolerance: float, clip: bool, mean: float) -> None:
    for patient in range(2):
        clean = chest_phantom(patient=patient, follow_up=0, seed=3, size=size)
        for std in STDS:
            found = estimate_noise_std(_noisy(clean, std, mean=mean, clip=clip, seed=patient), clip=clip)
            assert found == pytest.approx(std, rel=tolerance), (patient, std)


@pytest.mark.real
def test_it_is_within_a_tenth_on_radiographs(real_data: Path) -> None:
    split = Path(__file__).parents[2] / "benchmarks" / "splits" / "nih256.csv"
    with split.open(encoding="utf-8", newline="") as stream:
        names = [row["image_id"] for row in csv.DictReader(stream) if row["split"] == "train"]
    files = [path for name in names if (path := real_data / "nih256" / f"{name}.png").is_file()][:8]
    for path in files:
        clean = read_radiograph(path).pixels
        assert estimate_noise_std(clean) < 0.01
        for std in STDS:
            assert estimate_noise_std(_noisy(clean, std)) == pytest.approx(std, rel=0.1), (path.name, std)


def test_without_noise_it_is_next_to_nothing() -> None:
    assert estimate_noise_std(chest_phantom(patient=0, follow_up=0, seed=3, size=256)) < 0.005
    for level in (0.0, 0.5, 1.0):
        assert estimate_noise_std(np.full((64, 64), level, np.float32)) < 1e-5


def test_borders_without_noise_and_rounding_to_8_bits_do_not_matter() -> None:
    noisy = _noisy(chest_phantom(patient=1, follow_up=0, seed=3, size=256), 0.1)
    assert estimate_noise_std(to_pixels(to_levels(noisy, np.uint8))) == pytest.approx(0.1, rel=0.1)
    noisy[:, :150] = 0.0  # more than half of the image is a border that was never exposed
    assert estimate_noise_std(noisy) == pytest.approx(0.1, rel=0.1)


def test_images_too_small_are_refused() -> None:
    with pytest.raises(UsageError, match="18 x 18"):
        estimate_noise_std(np.zeros((17, 40), np.float32))
    assert estimate_noise_std(np.zeros((18, 18), np.float32)) == 0.0


@pytest.mark.parametrize("m", [-0.3, 0.0, 0.4, 1.1])
@pytest.mark.parametrize("std", [0.05, 0.5])
def test_moments_of_clamped_noise_are_those_of_draws(m: float, std: float) -> None:
    draws = np.clip(np.random.default_rng(1).normal(m, std, 400_000), 0.0, 1.0)
    mean, variance, inside = (float(part[0]) for part in _moments(np.array([m]), np.array([std])))
    assert mean == pytest.approx(draws.mean(), abs=2e-3)
    assert variance == pytest.approx(draws.var(), abs=2e-3)
    assert inside == pytest.approx(((draws > 0) & (draws < 1)).mean(), abs=3e-3)
