"""Scores of a denoised image, and their mean over images of several patients: what breaks.py and frontier.py share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from veilray.evaluation.scoring import BOOTSTRAP_SEED
from veilray.images.radiograph import FloatImage
from veilray.metrics.lpips import LPIPS
from veilray.metrics.psnr import psnr
from veilray.metrics.ssim import ssim
from veilray.metrics.statistics import clustered_bootstrap


def scores_of(estimate: FloatImage, clean: FloatImage, lpips: LPIPS | None) -> dict[str, float]:
    """PSNR in dB, SSIM and, where there is a network for it, LPIPS of (H, W), clamped to [0, 1], against the clean."""
    shown = torch.from_numpy(np.clip(estimate, 0.0, 1.0))[None, None]
    target = torch.from_numpy(clean)[None, None]
    found = {"psnr": psnr(shown, target, data_range=1.0).item(), "ssim": ssim(shown, target, data_range=1.0).item()}
    return found if lpips is None else {**found, "lpips": lpips(shown, target).item()}


def interval(values: Sequence[float], patients: Sequence[str]) -> dict[str, float]:
    """Mean of all values with its 95 % interval, clustered by patient."""
    found: dict[str, float] = clustered_bootstrap(np.array(values), patients, seed=BOOTSTRAP_SEED).model_dump()
    return found


def with_interval(value: dict[str, float], form: str) -> str:
    """An interval in words: 1.2 [1.0, 1.4]."""
    return f"{form.format(value['mean'])} [{form.format(value['low'])}, {form.format(value['high'])}]"
