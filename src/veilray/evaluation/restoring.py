"""A network's output for noisy images whose noise is known, as `veilray denoise` would give it."""

from __future__ import annotations

from torch import Tensor

from veilray.inference.denoiser import Denoiser
from veilray.obfuscation.config import NoiseConfig
from veilray.training.batch import Batch


def restored(denoiser: Denoiser, batch: Batch, noise: NoiseConfig) -> Tensor:
    """The noisy images of a batch denoised: (N, 1, H, W), float32, not clamped.

    Where all images have one mean and the network was trained on others, they are shifted to the nearest of those, as
    `Denoiser` does for whoever names the mean.
    """
    low, high = noise.mean_range
    noisy, mean, std = batch.noisy, batch.known[:, 0], batch.known[:, 1]
    if low == high:
        noisy, nearest = denoiser.with_trained_mean(noisy, low)
        return denoiser.denoise(noisy, mean=nearest, std=std)
    return denoiser.denoise(noisy, mean=mean, std=std)
