"""Losses of single pixels, averaged over each image."""

from __future__ import annotations

import torch
from torch import Tensor

from veilray.training.config import Loss

CHARBONNIER_EPSILON = 1e-3
"""Error below which the Charbonnier loss is a square rather than an absolute value, in units of the [0, 1] range."""

LOG_MSE_FLOOR = 1e-6
"""Mean squared error, on [0, 1], below which `log_mse` strives no further: what rounding to 8 bits makes."""


def image_losses(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """The pixel part of an objective, of each image: (N, 1, H, W) twice -> (N,), float32 or float64.

    Mean over the image's pixels of |e| (`l1`, and every objective that adds something to it), of e^2 (`mse`), or of
    sqrt(e^2 + eps^2) (`charbonnier`: Charbonnier, Blanc-Feraud, Aubert and Barlaud, ICIP 1994; eps as Lai, Huang, Ahuja
    and Yang, CVPR 2017), e = output - target; or ln(1 + MSE / floor) of the image's mean of e^2 (`log_mse`: PSNR as a
    loss, as NAFNet was trained, Chen et al., ECCV 2022, moved to end at 0). A batch's loss is the mean of these, so
    that sums and counts can cross batches and ranks. Validation is by this part alone, whatever training adds.
    """
    error = output.to(torch.promote_types(output.dtype, torch.float32)) - target
    match loss:
        case "mse":
            losses = error.square()
        case "log_mse":
            return torch.log1p(error.square().mean(dim=(1, 2, 3)) / LOG_MSE_FLOOR)
        case "charbonnier":
            losses = (error.square() + CHARBONNIER_EPSILON**2).sqrt()
        case "l1" | "ms_ssim_l1" | "frequency" | "perceptual" | "adversarial":
            losses = error.abs()
    return losses.mean(dim=(1, 2, 3))
