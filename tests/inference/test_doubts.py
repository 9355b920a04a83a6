"""What makes a result doubtful: colour, and noise far from the training's; what is usual goes unremarked."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from veilray.images.phantom import chest_phantom
from veilray.images.radiograph import FloatImage, to_levels
from veilray.images.read import read_radiograph_bytes
from veilray.inference.doubts import doubts, noise_doubts
from veilray.obfuscation.config import NoiseConfig
from veilray.obfuscation.noise import add_gaussian

RANGE = NoiseConfig(mean=0.1, std=(0.05, 0.3))
TOLD = NoiseConfig(mean=(0.0, 0.2), std=(0.01, 0.4))


@pytest.fixture(scope="module")
def clean() -> FloatImage:
    return chest_phantom(patient=1, follow_up=0, seed=3, size=128)


def _noisy(clean: FloatImage, std: float, *, mean: float = 0.1) -> FloatImage:
    generator = torch.Generator().manual_seed(1)
    return add_gaussian(torch.from_numpy(clean), mean=mean, std=std, generator=generator).numpy()


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("mean", [0.0, 0.1])
def test_levels_of_the_training_give_no_doubt(clean: FloatImage, std: float, mean: float) -> None:
    assert noise_doubts(_noisy(clean, std, mean=mean), RANGE) == []
    assert noise_doubts(_noisy(clean, std, mean=mean), TOLD, mean=mean) == []


@pytest.mark.parametrize(("mean", "trained"), [(0.5, TOLD), (-0.1, TOLD), (0.0, RANGE), (0.3, RANGE)])
def test_a_mean_far_outside_is_named_where_the_clamp_lets_no_shift_make_up_for_it(
    clean: FloatImage, mean: float, trained: NoiseConfig
) -> None:
    noisy = _noisy(clean, 0.1, mean=mean)
    (said,) = noise_doubts(noisy, trained, mean=mean)
    assert f"a mean of {mean:g}" in said
    assert f"trained on {trained.mean_text}" in said
    assert noise_doubts(noisy[:10, :10], trained, mean=mean) == [said]  # it need not be estimated
    assert noise_doubts(noisy, trained.model_copy(update={"clip": False}), mean=mean) == []


def test_a_noisy_image_whose_mean_nobody_gave_is_named_and_a_clean_one_is_not(clean: FloatImage) -> None:
    (said,) = noise_doubts(_noisy(clean, 0.2), TOLD)
    assert "no mean given, 0 assumed" in said
    assert noise_doubts(_noisy(clean, 0.2), TOLD, mean=0.1) == []
    assert noise_doubts(clean, TOLD) == []
    assert noise_doubts(_noisy(clean, 0.2), RANGE) == []  # of one mean, which is taken for the image's


@pytest.mark.parametrize(("std", "trained"), [(0.6, (0.05, 0.3)), (0.02, (0.1, 0.3)), (0.3, 0.1)])
def test_levels_far_outside_are_named(clean: FloatImage, std: float, trained: float | tuple[float, float]) -> None:
    noise = NoiseConfig(std=trained)
    (said,) = noise_doubts(_noisy(clean, std), noise)
    assert noise.std_text in said
    level = float(said.split("about ")[1].split(",")[0])
    assert level == pytest.approx(std, rel=0.3)


@pytest.mark.parametrize(("side", "judged"), [(32, False), (49, False), (50, True), (128, True)])
def test_a_level_estimated_from_few_patches_is_not_called_far_off(clean: FloatImage, side: int, judged: bool) -> None:
    part = clean[:side, :side]
    assert bool(noise_doubts(part, NoiseConfig(std=0.4))) == judged
    assert noise_doubts(part, NoiseConfig(std=0.4), std=0.1) != []  # a level that is known is judged at any size


def test_a_clean_image_is_doubtful_only_where_training_began_far_above(clean: FloatImage) -> None:
    assert noise_doubts(clean, NoiseConfig(std=(0.01, 0.4))) == []
    assert noise_doubts(clean, NoiseConfig(std=0.2))


def test_a_release_s_own_level_is_taken_as_true(clean: FloatImage) -> None:
    (said,) = noise_doubts(clean, RANGE, std=0.9)
    assert "0.9" in said
    assert "about" not in said
    assert noise_doubts(clean, RANGE, std=0.1) == []


def test_nothing_is_said_of_what_is_not_known(clean: FloatImage) -> None:
    assert noise_doubts(clean, None) == []
    assert noise_doubts(clean[:10, :10], RANGE) == []


def _read(image: Image.Image, kind: str) -> list[str]:
    stream = io.BytesIO()
    image.save(stream, kind)
    return doubts(read_radiograph_bytes(stream.getvalue(), source=f"a.{kind}"), None)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_photograph_in_colour_is_doubted_and_a_grey_one_saved_in_colour_is_not(clean: FloatImage, kind: str) -> None:
    grey = Image.fromarray(to_levels(clean, np.uint8))
    assert _read(grey, kind) == []
    assert _read(grey.convert("RGB"), kind) == []
    marked = grey.convert("RGB")
    marked.paste((255, 0, 0), (4, 4, 16, 10))  # a mark in one corner
    assert _read(marked, kind) == []
    rows, columns = np.mgrid[:128, :128]
    photograph = np.stack([2 * rows, 2 * columns, 255 - rows - columns], axis=-1).astype(np.uint8)
    (said,) = _read(Image.fromarray(photograph), kind)
    assert "colour" in said


def test_a_palette_has_colour_too(tmp_path: Path) -> None:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 200, 60, 60])
    (said,) = _read(image, "png")
    assert "colour" in said


def test_a_picture_of_one_bit_is_no_radiograph_and_comes_back_with_eight() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.arange(400).reshape(20, 20) % 3 == 0).save(stream, "png")
    radiograph = read_radiograph_bytes(stream.getvalue(), source="a.png")
    assert radiograph.bit_depth == 1
    assert any("1 bit a pixel" in said and "8" in said for said in doubts(radiograph, None))
