"""Multi-scale structural similarity as an objective (Zhao, Gallo, Frosio and Kautz, IEEE Trans. Computational Imaging
3(1), 2017, after Wang, Simoncelli and Bovik, Asilomar 2003)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veilray.metrics.ssim import K1, K2
from veilray.training.objectives.pixel import image_losses

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, finest first (Wang et al., section 3.2)."""
RADIUS = 5
"""Of the window, Gaussian of deviation 1.5."""
_LEAST = 1e-3


class MsSsimL1(nn.Module):
    """a (1 - MS-SSIM) + (1 - a) |e| of each image: (N, 1, H, W) twice -> (N,), with `weight` a, 0.84 in the paper.

    Unlike the paper's. There: five deviations, 0.5 to 8 pixels, at full resolution, and exponents of 1; here the
    pyramid and the exponents of Wang et al., which the metric of that name has. There |e| is weighted by a Gaussian
    about each pixel before the mean over the image is taken; that changes the mean at the border alone, and is left
    out.
    """

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """(N, 1, H, W) twice, about [0, 1], 11 pixels a side or more -> (N,)."""
        structure = 1.0 - ms_ssim(output, target)
        return self.weight * structure + (1.0 - self.weight) * image_losses("ms_ssim_l1", output, target)


def ms_ssim(output: Tensor, target: Tensor) -> Tensor:
    """MS-SSIM of each image: (N, 1, H, W) twice, floating, range [0, 1], 11 pixels a side or more -> (N,), up to 1.

    The product over scales s of m_s to the power of weight_s, m_s being the mean over the image of the
    contrast-structure term, at the coarsest scale that of the whole SSIM; each scale halves the one before it by
    averaging 2 x 2 pixels. Five scales; fewer where less than a window would be left, with weights that still add up
    to 1. A mean below 0.001, where the power has no useful slope, is taken as 0.001.
    """
    side = min(output.shape[-2:])
    count = min(len(WEIGHTS), 1 + int(math.log2(side / (2 * RADIUS + 1))))
    total = sum(WEIGHTS[:count])
    x, y = output.to(torch.promote_types(output.dtype, torch.float32)), target.to(output.dtype)
    score = x.new_ones(len(x))
    for scale, weight in enumerate(WEIGHTS[:count]):
        last = scale + 1 == count
        mean = _terms(x, y, luminance=last).mean(dim=(1, 2, 3))
        score = score * mean.clamp(min=_LEAST) ** (weight / total)
        if not last:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return score


def _terms(x: Tensor, y: Tensor, *, luminance: bool) -> Tensor:
    """The contrast-structure term in every window, (N, 1, H - 10, W - 10); times the luminance term if wanted."""
    mean_x, mean_y = _blurred(x), _blurred(y)
    variances = _blurred(x.square()) - mean_x.square() + _blurred(y.square()) - mean_y.square()
    covariance = _blurred(x * y) - mean_x * mean_y
    terms = (2 * covariance + K2**2) / (variances + K2**2)
    if luminance:
        terms = terms * (2 * mean_x * mean_y + K1**2) / (mean_x.square() + mean_y.square() + K1**2)
    return terms


def _blurred(x: Tensor) -> Tensor:
    """Weighted means over the windows that lie wholly inside."""
    taps = torch.exp(-(torch.arange(-RADIUS, RADIUS + 1, device=x.device, dtype=x.dtype) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()
    return F.conv2d(F.conv2d(x, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))
