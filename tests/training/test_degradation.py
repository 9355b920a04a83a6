"""The three tasks of DnCNN-3: what images are drawn, and what is done to them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.small import small_config

from veilray.cohort.cohort import Cohort
from veilray.cohort.obfuscate import write_release
from veilray.errors import UsageError
from veilray.images.phantom.render import chest_phantom
from veilray.obfuscation.config import NoiseConfig
from veilray.training.data import TrainingImages
from veilray.training.degradation import compressed, enlarged, other_task

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    return chest_phantom(patient=1, follow_up=0, seed=1, size=64)


def test_compression_is_pillows_at_8_bits(phantom: np.ndarray) -> None:
    stream = io.BytesIO()
    levels = Image.fromarray((255 * phantom + 0.5).astype(np.uint8))
    levels.save(stream, "JPEG", quality=12)
    assert np.array_equal(np.round(255 * compressed(phantom, quality=12)), np.asarray(Image.open(stream)))
    errors = [np.abs(compressed(phantom, quality=quality) - phantom).mean() for quality in (5, 40, 99)]
    assert errors[0] > errors[1] > errors[2]


def test_enlargement_loses_what_is_fine_and_keeps_what_is_coarse(phantom: np.ndarray) -> None:
    for factor in (2, 3, 4):
        result = enlarged(phantom, factor=factor)
        assert result.shape == phantom.shape
        assert result.dtype == np.float32
        assert 0 <= result.min() <= result.max() <= 1
        assert abs(result.mean() - phantom.mean()) < 0.01
    stripes = np.tile(np.array([0.0, 1.0], dtype=np.float32), (32, 16))
    assert enlarged(stripes, factor=4).std() < 0.15 * stripes.std()


def test_tasks_are_drawn_evenly_and_again_alike(phantom: np.ndarray) -> None:
    small = phantom[:16, :16]
    drawn = [other_task(small, name=f"7/0/{index}") for index in range(600)]
    assert sum(image is None for image in drawn) == pytest.approx(200, abs=45)
    again = [other_task(small, name=f"7/0/{index}") for index in range(20)]
    assert all((a is None and b is None) or np.array_equal(a, b) for a, b in zip(drawn, again, strict=False))


def test_training_images_get_one_of_three_and_validation_noise(cohort: Path) -> None:
    plain, three = (
        TrainingImages.open(cohort, small_config(train={"batch_size": 64, "degradation": degradation}))
        for degradation in ("noise", "three-tasks")
    )
    first, second = (images.training_batch(0, 0, CPU) for images in (plain, three))
    noisy = [torch.equal(a, b) for a, b in zip(first.noisy, second.noisy, strict=True)]
    assert 0 < sum(noisy) < len(noisy)
    for index, same in enumerate(noisy):
        assert second.known[index].tolist() == (first.known[index].tolist() if same else [0.0, 0.0])
        if not same:
            error = (second.noisy[index] - second.clean[index]).abs().mean()
            assert error < (first.noisy[index] - first.clean[index]).abs().mean()
    rows = plain.sets["validation"]
    assert torch.equal(plain.held_out_batch(rows, CPU).noisy, three.held_out_batch(rows, CPU).noisy)
    assert not torch.equal(three.training_batch(1, 0, CPU).noisy, second.noisy)


def test_a_release_has_its_noise_already(cohort: Path, tmp_path: Path) -> None:
    write_release(Cohort.open(cohort), tmp_path / "release", noise=NoiseConfig(), pairs=True)
    with pytest.raises(UsageError, match=r"train\.degradation = 'three-tasks' is for cohorts"):
        TrainingImages.open(tmp_path / "release", small_config(train={"degradation": "three-tasks"}))
