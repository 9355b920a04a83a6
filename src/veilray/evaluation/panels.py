"""The images that a report shows: the same test images as every arm of a comparison restores them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from veilray.cohort.cohort import Cohort
from veilray.cohort.release import Release
from veilray.errors import CohortError
from veilray.evaluation.compare import panel_images
from veilray.evaluation.comparison import Comparison, Level, Role
from veilray.evaluation.levels import at_noise
from veilray.evaluation.restoring import restored
from veilray.images.radiograph import FloatImage
from veilray.inference.denoiser import Denoiser
from veilray.metrics.psnr import psnr
from veilray.training.batch import Batch
from veilray.training.data import TrainingImages


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One test image at one noise level, as every arm restored it."""

    image_id: str
    role: Role
    level: str
    """Label of the noise level, `Level.label`."""
    noisy: FloatImage
    """(H, W), float32, [0, 1]."""
    clean: FloatImage
    """(H, W), float32, [0, 1]."""
    outputs: dict[str, FloatImage]
    """Arm label -> (H, W), float32, [0, 1], of the arm's first run."""
    psnr: dict[str, float]
    """Arm label -> PSNR of that output in dB."""
    noisy_psnr: float | None = None
    """PSNR of the noisy image in dB."""


def restore_panels(comparison: Comparison, *, data: str | Cohort | Release, device: torch.device) -> list[Panel]:
    """Restore the median, the best and the ten worst images of a comparison at each of its noise levels.

    `data` is the cohort or release they were evaluated on, or its folder. Raises CohortError where it is missing or not
    that one.
    """
    panels = []
    for level in comparison.levels:
        config = at_noise(level.models[0].runs[0].config, level.noise)
        images = TrainingImages.open(data, config) if isinstance(data, str) else TrainingImages(data, config)
        if images.data.digest != comparison.cohort_digest:
            raise CohortError(
                f"{images.data.path} is not the cohort of the comparison (digest {comparison.cohort_digest[:12]})"
            )
        denoisers = {arm.label: Denoiser.load(arm.runs[0].source, device=device.type) for arm in level.models}
        for image_id, role in panel_images(comparison):
            row = next(row for row in images.sets[comparison.split] if images.image_id(int(row)) == image_id)
            panels.append(_restore(denoisers, images.held_out_batch(np.array([row]), device), images, level, role))
    return panels


def _restore(denoisers: dict[str, Denoiser], batch: Batch, images: TrainingImages, level: Level, role: Role) -> Panel:
    outputs = {label: restored(one, batch, images.noise).clamp(0.0, 1.0) for label, one in denoisers.items()}
    return Panel(
        image_id=images.image_id(int(batch.rows[0])),
        role=role,
        level=level.label,
        noisy=_array(batch.noisy.clamp(0.0, 1.0)),
        clean=_array(batch.clean),
        outputs={label: _array(output) for label, output in outputs.items()},
        psnr={label: psnr(output, batch.clean, data_range=1.0).item() for label, output in outputs.items()},
        noisy_psnr=psnr(batch.noisy.clamp(0.0, 1.0), batch.clean, data_range=1.0).item(),
    )


def _array(images: Tensor) -> FloatImage:
    array: FloatImage = images[0, 0].float().cpu().numpy()
    return array
