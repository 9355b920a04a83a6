"""The likelihood of clamped Gaussian noise: y = clip(z, 0, 1), z ~ N(m, std^2).

A density inside (0, 1) and a probability mass at either end, as in a regression with two limits (Tobin, Econometrica
26(1), 1958; Rosett and Nelson, Econometrica 43(1), 1975):
    log p(y | m) = -(y - m)^2 / (2 std^2) - log(std sqrt(2 pi))   inside,
                   log Phi((m - 1) / std)                          at 1,
                   log Phi(-m / std)                               at 0.
Its derivative in m is (E[z | y] - m) / std^2: at the ends the mean of what was cut off stands for what is not seen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inside(y: Tensor) -> Tensor:
    """Which pixels the clamp left alone: any shape -> the same, bool."""
    return (y > 0) & (y < 1)


def log_likelihood(y: Tensor, *, m: Tensor, std: Tensor) -> Tensor:
    """log p(y | m) of each pixel: `y` in [0, 1], `m` and `std` broadcast against it; float32 or float64.

    Differentiable in `m`, and finite however far `m` lies from `y`.
    """
    density = -0.5 * ((y - m) / std).square() - torch.log(std * math.sqrt(2 * math.pi))
    above, below = torch.special.log_ndtr((m - 1) / std), torch.special.log_ndtr(-m / std)
    return torch.where(y >= 1, above, torch.where(y <= 0, below, density))


def latent_mean(y: Tensor, *, m: Tensor, std: Tensor) -> Tensor:
    """E[z | y, m], which is y inside and the mean of a truncated normal at the ends; shapes as `log_likelihood`."""
    above = m + std * _hazard((m - 1) / std)
    below = m - std * _hazard(-m / std)
    return torch.where(y >= 1, above, torch.where(y <= 0, below, y))


def _hazard(t: Tensor) -> Tensor:
    """phi(t) / Phi(t), without overflow for t far below 0."""
    return torch.exp(-0.5 * t.square() - 0.5 * math.log(2 * math.pi) - torch.special.log_ndtr(t))
