"""A network's output for noisy images whose noise is known, as `veilray denoise` would give it."""

from __future__ import annotations

from torch import Tensor

from veilray.inference.denoiser import Denoiser
from veilray.obfuscation.config import NoiseConfig
from veilray.training.batch import Batch


def restored(denoiser: Denoiser, batch: Batch, noise: NoiseConfig) -> Tensor:
    """The noisy images of a batch denoised: (N, 1, H, W), float32, not clamped.

    Images of a mean that the network was not trained on are shifted, as `Denoiser` does for whoever names the mean.
    """
    low, high = noise.mean_range
    mean = low if low == high else batch.known[:, 0]  # a mean of all is known to more digits than float32 has
    return denoiser.denoise(batch.noisy, mean=mean, std=batch.known[:, 1])
