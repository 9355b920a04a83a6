"""How networks compare where there are no clean images: by one estimate from noisy ones, of each as it is used.

A centre that holds a noisy release alone chooses among recipes by it, whatever each was trained by.
"""

from __future__ import annotations

import torch
from torch import Tensor

from veilray.inference.denoiser import Denoiser
from veilray.training.data import TrainingImages
from veilray.training.objectives.sure import sure_losses

BATCH_SIZE = 8


@torch.no_grad()
def noisy_criterion(denoiser: Denoiser, images: TrainingImages, device: torch.device) -> float:
    """The estimate by which `auto` trains on a noisy release, of what a network makes of its validation images.

    Smaller is better, and it compares networks on one release only: without a clamp it is the squared error on average,
    with it that and what no network changes. Probes never change. `images`: with the objective that `auto` takes.
    """

    def network(noisy: Tensor, known: Tensor) -> Tensor:
        return denoiser.denoise(noisy, mean=known[:, 0], std=known[:, 1])

    total = 0.0
    for batch in images.held_out_batches("validation", device, batch_size=BATCH_SIZE):
        assert batch.drawn is not None
        signs, weight = batch.drawn.signs, batch.drawn.probe_weight
        assert signs is not None
        assert weight is not None
        clip = images.noise.clip
        losses = sure_losses(network, batch.noisy, batch.known, signs=signs, weight=weight, clip=clip)
        total += losses.double().sum().item()
    return total / len(images.sets["validation"])
