"""What data decide of a training: their noise, and which images train, validate and test."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from veilray.cohort.cohort import Cohort
from veilray.cohort.release import Release
from veilray.cohort.split import SPLITS, image_split
from veilray.errors import CohortError, UsageError
from veilray.obfuscation.config import NoiseConfig
from veilray.training.config import RunConfig

Rows = npt.NDArray[np.int64]
SMALLEST = 11  # the window of SSIM


def noise_of(data: Cohort | Release, config: RunConfig) -> NoiseConfig:
    """The noise of a training: the configuration's on a cohort, its own on a release; UsageError where they differ."""
    if isinstance(data, Cohort):
        return config.noise
    if config.train.degradation != "noise":
        raise UsageError(
            f"train.degradation = '{config.train.degradation}' is for cohorts: the noisy images of {data.path} are made"
        )
    wanted = config.noise
    if "noise" in config.model_fields_set and (wanted.mean, wanted.std, wanted.clip) != (
        data.noise.mean,
        data.noise.std,
        data.noise.clip,
    ):
        raise UsageError(
            f"the configuration asks for noise mean {wanted.mean}, std {wanted.std}, clip {wanted.clip}, but the "
            f"release was made with mean {data.noise.mean}, std {data.noise.std}, clip {data.noise.clip}; "
            "set noise.mean, noise.std and noise.clip to the release's"
        )
    return data.noise


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def sets_of(data: Cohort | Release, config: RunConfig) -> dict[str, Rows]:
    """Rows of each set by its name.

    Raises CohortError for images that cannot be trained on together, are too small or too few, UsageError for a crop
    that is too large or too small.
    """
    crop = config.train.crop
    if len(data.sizes) > 1 and not crop:
        sizes = f"{len(data.sizes)} sizes, {_text(data.sizes[0])} to {_text(data.sizes[-1])}"
        raise CohortError(f"{data.path} holds images of {sizes}; import them with --size, or set train.crop")
    small = min(min(size) for size in data.sizes)
    if small < SMALLEST:
        raise CohortError(f"{data.path} holds images of {small} pixels a side; networks and metrics need {SMALLEST}")
    if crop > small:
        raise UsageError(f"train.crop = {crop} is larger than the smallest side of an image, {small}")
    if 0 < crop < SMALLEST:
        raise UsageError(f"train.crop = {crop} is too small: networks and metrics need {SMALLEST} pixels a side")
    codes = image_split(data.image_ids, seed=config.split.seed) if config.split.rule == "paper" else data.split_codes
    sets: dict[str, Rows] = {name: np.flatnonzero(codes == code) for code, name in enumerate(SPLITS)}
    for name in ("train", "validation"):
        if not len(sets[name]):
            raise CohortError(
                f"{data.path} has no images in its {name} set; training needs some for training and some for validation"
                f"{_why(data)}"
            )
    return sets


def _why(data: Cohort | Release) -> str:
    """Why a set may be empty, where that is plain."""
    if len(data) == 1:
        return ", and this is one image"
    patients = len({data.patient_id(row) for row in range(len(data))})
    if patients == 1:
        return f", and all its {len(data)} images are of one patient, who is in one set alone"
    return f"; its {patients} patients are shared out when they are imported, by --shares and --split-seed"
