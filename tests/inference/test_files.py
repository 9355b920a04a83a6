"""Denoising files: what is written, what is left out and why, one image at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.cohort.noise_source import seeded_noise
from veilray.cohort.obfuscate import write_release
from veilray.cohort.release import Release
from veilray.errors import CohortError, UsageError, VeilrayError
from veilray.images.radiograph import to_levels
from veilray.images.read import read_radiograph
from veilray.inference.denoiser import Denoiser
from veilray.inference.files import Denoised, denoise_inputs
from veilray.models.unet import UNet
from veilray.obfuscation.config import NoiseConfig


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """An untrained network, which still maps every image to one of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Denoiser(UNet(width=4, depth=3, residual=True).eval(), noise=NoiseConfig(), device="cpu")


@pytest.fixture(scope="module")
def told() -> Denoiser:
    """One that is told the noise's std, too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(width=4, depth=3, residual=True, inputs="image+mean+std").eval()
    return Denoiser(network, noise=NoiseConfig(std=(0.1, 0.3)), device="cpu")


def _save(path: Path, seed: int = 0, *, bits: int = 8, size: tuple[int, int] = (20, 26)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 2**bits, size).astype(np.uint8 if bits == 8 else np.uint16)
    Image.fromarray(levels).save(path)
    return path


def _run(denoiser: Denoiser, out: Path, *inputs: Path, mean: float | None = None) -> list[Denoised]:
    return list(denoise_inputs(inputs, out, denoiser=denoiser, mean=mean))


def test_each_input_gives_one_file_of_its_name(denoiser: Denoiser, tmp_path: Path) -> None:
    sources = [_save(tmp_path / "in" / f"{index}.png", index, bits=bits) for index, bits in enumerate((8, 16))]
    results = _run(denoiser, tmp_path / "out", tmp_path / "in")
    assert [result.target for result in results] == [tmp_path / "out" / path.name for path in sources]
    assert all(result.reason == "" for result in results)
    contents = [path.read_bytes() for path in sorted((tmp_path / "out").iterdir())]
    assert len(set(contents)) == 2


def test_names_with_dots_and_colons_keep_their_stems(denoiser: Denoiser, tmp_path: Path) -> None:
    for index, name in enumerate(("1.2.840.png", "1.2.841.PNG", "b.png", "a:b.png")):
        _save(tmp_path / "in" / name, index)
    results = _run(denoiser, tmp_path / "out", tmp_path / "in")
    names = {result.target.name for result in results if result.target is not None}
    assert names == {"1.2.840.png", "1.2.841.png", "b.png", "a:b.png"}


def test_dicom_names_without_an_ending_are_kept_apart(denoiser: Denoiser, tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from tests.images.dicom_files import build, save

    levels = np.arange(400, dtype=np.uint8).reshape(20, 20) // 2
    for name in ("1.2.840", "1.2.841"):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(save(build(levels)))
    results = _run(denoiser, tmp_path / "out", tmp_path / "in")
    assert all(result.target is not None for result in results), [result.reason for result in results]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"1.2.840.png", "1.2.841.png"}


def test_one_bad_file_does_not_stop_the_others(denoiser: Denoiser, tmp_path: Path) -> None:
    _save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(_save(tmp_path / "b.png").read_bytes()[:-40])
    _save(tmp_path / "in" / "c.png", 2)
    results = _run(denoiser, tmp_path / "out", tmp_path / "in")
    assert [result.target is None for result in results] == [False, True, False]
    assert "b.png" in results[1].source
    assert results[1].reason


def test_an_image_too_small_for_an_estimate_of_its_noise_does_not_stop_the_others(
    told: Denoiser, tmp_path: Path
) -> None:
    for name, size in (("a", (20, 26)), ("b", (3, 5)), ("c", (20, 26))):
        _save(tmp_path / "in" / f"{name}.png", size=size)
    results = _run(told, tmp_path / "out", tmp_path / "in")
    assert [result.target is None for result in results] == [False, True, False]
    assert "b.png" in results[1].source
    assert "18 x 18 pixels" in results[1].reason
    given = list(denoise_inputs([tmp_path / "in"], tmp_path / "given", denoiser=told, mean=0.1, std=0.2))
    assert all(result.target is not None for result in given)


def test_what_is_there_already_stays(denoiser: Denoiser, tmp_path: Path) -> None:
    source = _save(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_text("mine")
    (result,) = _run(denoiser, tmp_path / "out", source)
    assert result.target is None
    assert "exists already" in result.reason
    assert (tmp_path / "out" / "a.png").read_text() == "mine"
    # Beside the input the name is taken by the input itself.
    (result,) = _run(denoiser, source.parent, source)
    assert result.target is None


def test_a_folder_inside_the_input_is_refused_before_anything_is_read(denoiser: Denoiser, tmp_path: Path) -> None:
    _save(tmp_path / "in" / "a.png")
    for out in (tmp_path / "in", tmp_path / "in" / "out"):
        with pytest.raises(UsageError, match="inside the input"):
            _run(denoiser, out, tmp_path / "in")
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.png"]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release of 6 images of 16 bits, with noise of mean 0.3."""
    for index in range(6):
        _save(tmp_path / "in" / f"{index:08}_000.png", index, bits=16)
    import_radiographs([tmp_path / "in"], tmp_path / "cohort", size=None, workers=1)
    noise = NoiseConfig(mean=0.3, std=0.1)
    cohort = Cohort.open(tmp_path / "cohort")
    source = seeded_noise(noise, cohort=cohort, seed=1)
    return write_release(cohort, tmp_path / "release", noise=noise, source=source).path


def test_a_release_keeps_depth_and_brings_its_mean(denoiser: Denoiser, release: Path, tmp_path: Path) -> None:
    results = _run(denoiser, tmp_path / "own", release)
    assert len(results) == 6
    same = _run(denoiser, tmp_path / "same", release, mean=0.3)
    other = _run(denoiser, tmp_path / "other", release, mean=0.1)
    for own, again, different in zip(results, same, other, strict=True):
        assert own.target is not None
        assert again.target is not None
        assert different.target is not None
        with Image.open(own.target) as image:
            assert np.asarray(image).dtype == np.uint16
        assert own.target.read_bytes() == again.target.read_bytes() != different.target.read_bytes()


def test_a_std_is_told_to_a_network_that_takes_it_and_refused_for_others(
    denoiser: Denoiser, told: Denoiser, tmp_path: Path
) -> None:
    _save(tmp_path / "in" / "a.png")
    with pytest.raises(UsageError, match="not told the noise's std"):
        list(denoise_inputs([tmp_path / "in"], tmp_path / "out", denoiser=denoiser, mean=0.1, std=0.2))
    with pytest.raises(UsageError, match="above 0"):
        list(denoise_inputs([tmp_path / "in"], tmp_path / "out", denoiser=told, mean=0.1, std=-0.1))
    pixels = read_radiograph(tmp_path / "in" / "a.png").pixels
    written = []
    for name, std in (("own", None), ("low", 0.1), ("high", 0.9)):
        (result,) = denoise_inputs([tmp_path / "in"], tmp_path / name, denoiser=told, mean=0.1, std=std)
        assert result.target is not None
        assert any("std of 0.9" in warning for warning in result.warnings) is (std == 0.9)
        with Image.open(result.target) as image:
            written.append(np.asarray(image))
        expected = to_levels(told(pixels, mean=0.1, std=std, warn=False), np.uint8)
        np.testing.assert_array_equal(written[-1], expected)
    assert len({levels.tobytes() for levels in written}) == 3


def test_a_damaged_release_is_refused(denoiser: Denoiser, release: Path, tmp_path: Path) -> None:
    (pixels,) = (release / name for name in Release.open(release).record.files if name.startswith("noisy-"))
    content = bytearray(pixels.read_bytes())
    content[-1] ^= 1
    pixels.write_bytes(content)
    with pytest.raises(CohortError, match=pixels.name):
        _run(denoiser, tmp_path / "out", release)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_half_file(denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, target: object, *rest: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    source = _save(tmp_path / "in" / "a.png")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(VeilrayError, match="no space left"):
        _run(denoiser, tmp_path / "out", source)
    assert list((tmp_path / "out").iterdir()) == []
