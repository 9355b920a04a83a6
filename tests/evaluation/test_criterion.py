"""The criterion by which runs compare without clean images, held against the squared error that it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.command_line import done, split_file
from tests.training.small import small_config, write_images

from veilray.cohort.cohort import Cohort
from veilray.cohort.matching import with_originals
from veilray.cohort.release import Release
from veilray.evaluation.criterion import noisy_criterion
from veilray.inference.denoiser import Denoiser
from veilray.models.build import build_model
from veilray.models.weights import save_weights
from veilray.obfuscation.config import Recorruption
from veilray.training.data import TrainingImages

CPU = torch.device("cpu")
STD = 0.2


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cohort, and a release of it that is not clamped."""
    root = tmp_path_factory.mktemp("sites")
    write_images(root / "png", patients=60)
    sets = split_file(root / "split.csv", root / "png", ("train", "train", "train", "validation", "test"))
    done("import", root / "png", "--out", root / "cohort", "--size", 32, "--split", sets, "--workers", 1)
    done("obfuscate", root / "cohort", "--out", root / "release", "--std", STD, "--no-clip")
    return root / "cohort", root / "release"


@pytest.mark.parametrize("recorruption", [None, Recorruption(strength=0.5, count=3)])
def test_it_is_the_squared_error_of_the_network_as_it_is_used(
    sites: tuple[Path, Path], tmp_path: Path, recorruption: Recorruption | None
) -> None:
    cohort, release = sites
    config = small_config(noise={"mean": 0.1, "std": STD, "clip": False}, model={"residual": True})
    torch.manual_seed(3)
    save_weights(tmp_path / "w.safetensors", build_model(config.model), noise=config.noise, recorruption=recorruption)
    denoiser = Denoiser.load(tmp_path / "w.safetensors", device="cpu", precision="fp32")
    noisy_only, paired = Release.open(release), with_originals(Release.open(release), Cohort.open(cohort))
    images = TrainingImages(noisy_only, small_config())
    assert images.choice.objective == "sure"
    criterion = noisy_criterion(denoiser, images, CPU)
    errors = []
    for batch in TrainingImages(paired, small_config()).held_out_batches("validation", CPU, batch_size=8):
        output = denoiser.denoise(batch.noisy, mean=batch.known[:, 0], std=batch.known[:, 1])
        errors += (output - batch.clean).square().mean(dim=(1, 2, 3)).tolist()
    assert len(errors) == 24
    assert criterion == pytest.approx(sum(errors) / len(errors), rel=0.05)
    assert noisy_criterion(denoiser, images, CPU) == criterion, "its draws never change"
