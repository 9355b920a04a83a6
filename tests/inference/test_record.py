"""denoised.json: which images were made how, through interruptions and other models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.inference.test_files import _save

from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.cohort.noise_source import seeded_noise
from veilray.cohort.obfuscate import write_release
from veilray.cohort.release import Release
from veilray.errors import DataError
from veilray.files import sha256_file
from veilray.inference.denoiser import Denoiser
from veilray.inference.files import denoise_inputs
from veilray.inference.record import DENOISED_RECORD, DenoiseSettings, new_batch, read_denoised
from veilray.models.unet import UNet
from veilray.models.weights import save_weights
from veilray.obfuscation.config import NoiseConfig


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """An untrained network's weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(tmp_path / "weights.safetensors", UNet(width=4, depth=3), noise=NoiseConfig())
    return tmp_path / "weights.safetensors"


def _load(weights: Path, **options: object) -> Denoiser:
    return Denoiser.load(weights, device="cpu", precision="fp32", **options)  # type: ignore[arg-type]


def test_it_says_which_weights_and_settings_made_which_files(weights: Path, tmp_path: Path) -> None:
    _save(tmp_path / "in" / "a.png")
    list(denoise_inputs([tmp_path / "in"], tmp_path / "out", denoiser=_load(weights), mean=0.0))
    _save(tmp_path / "in" / "b.png", 1)
    list(denoise_inputs([tmp_path / "in"], tmp_path / "out", denoiser=_load(weights), mean=0.0))
    _save(tmp_path / "in" / "c.png", 2)
    list(denoise_inputs([tmp_path / "in"], tmp_path / "out", denoiser=_load(weights, tile=96), mean=None))
    same, other = read_denoised(tmp_path / "out").batches
    assert (same.files, other.files) == (("a.png", "b.png"), ("c.png",))
    assert (same.settings.mean, other.settings.mean) == (0.0, None)
    assert (same.settings.tile, other.settings.tile) == (1024, 96)
    assert same.weights_sha256 == other.weights_sha256 == sha256_file(weights)
    assert same.release is None


def test_a_release_is_named_and_an_interrupted_one_is_completed(weights: Path, tmp_path: Path) -> None:
    for index in range(5):
        _save(tmp_path / "in" / f"{index:08}_000.png", index)
    import_radiographs([tmp_path / "in"], tmp_path / "cohort", size=None, workers=1)
    noise = NoiseConfig(mean=0.3, std=0.1)
    cohort = Cohort.open(tmp_path / "cohort")
    source = seeded_noise(noise, cohort=cohort, seed=1)
    path = write_release(cohort, tmp_path / "release", noise=noise, source=source).path
    release = Release.open(path)
    out = tmp_path / "out"
    denoising = denoise_inputs([path], out, denoiser=_load(weights), mean=None)
    next(denoising)
    del denoising  # as a kill would leave it: some images there, the rest not
    assert len(list(out.glob("*.png"))) < 5
    list(denoise_inputs([path], out, denoiser=_load(weights), mean=None))
    (batch,) = read_denoised(out).batches
    assert set(batch.files) == {f"{name}.png" for name in release.image_ids}
    assert set(batch.files) == {file.name for file in out.glob("*.png")}
    assert batch.release is not None
    assert batch.release.release_id == release.record.release_id
    assert batch.release.noise.mean == 0.3


def test_a_damaged_record_is_said_before_anything_is_denoised(weights: Path, tmp_path: Path) -> None:
    source = _save(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    for damage in ("{", '{"schema_version": 3, "batches": []}'):
        (tmp_path / "out" / DENOISED_RECORD).write_text(damage)
        with pytest.raises(DataError, match=DENOISED_RECORD):
            list(denoise_inputs([source], tmp_path / "out", denoiser=_load(weights), mean=None))
        assert not list((tmp_path / "out").glob("*.png"))


def test_a_std_that_was_given_is_recorded_and_one_that_was_not_leaves_uids_as_they_were() -> None:
    without = DenoiseSettings(mean=0.1, tile=1024, precision="fp32")
    batch = new_batch(weights_sha256="0" * 64, settings=without)
    decided = '{"release": null, "settings": {"head": null, "mean": 0.1, "precision": "fp32", "tile": 1024}}'
    assert batch.provenance().settings == decided  # of before a std could be given; UIDs are made of it
    given = batch.model_copy(update={"settings": without.model_copy(update={"std": 0.2})})
    assert '"std": 0.2' in given.provenance().settings
    assert DenoiseSettings.model_validate_json(given.settings.model_dump_json()) == given.settings
