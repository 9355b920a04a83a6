"""Objectives that make a noisy image noisier, and ask the network for what the released one says.

With y = x + mean + n, n ~ N(0, std^2), and a field r ~ N(0, std^2) of one's own, z = y + a r and t = y - r / a are
independent given x. So for a network that sees z alone, without a clamp,
    E |f(z) - x|^2 = E |f(z) + mean - t|^2 - N std^2 (1 + 1 / a^2)
(`r2r`, recorrupted-to-recorrupted: Pang, Zheng, Quan and Ji, CVPR 2021, section 3). At inference the mean over several
z is taken (section 3.3); how many is written into the weights.

`noisier2noise` (Moran, Schmidt, Zhong and Coady, CVPR 2020, section 3) predicts y from z, u(z) = E[y | z], and puts
x = ((1 + a^2) u(z) - z) / a^2 - mean together at the end (equation 6). Written for that x,
    u(z) - y = (a^2 / (1 + a^2)) (f(z) + mean - t),
so both minimise the same thing, up to a factor that is taken out here. What differs is what their papers do with it:
a = 1 and one z at inference here, a = 1/2 and several there.

`censored_r2r`, for clamped releases, y = clip(x + mean + n, 0, 1): z = y + a r still says nothing about y beyond x and
itself that is not known in closed form, by Bayes' rule:
    p(y | z, x) = p(y | x) N(z - y; (a std)^2) / Z(z, x),
    Z(z, x) = P(0 | x) N(z; ..) + P(1 | x) N(z - 1; ..) + integral from 0 to 1 of N(y; x + mean, std^2) N(z - y; ..) dy.
Its logarithm at x = f(z) is the objective: exact, whatever the clamp cuts off, for an x that z determines, and off by
what is of second order in the spread of x given z otherwise. Without clamped pixels it is `r2r`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from veilray.obfuscation.censored import inside, log_likelihood
from veilray.training.objectives.network import Network

_HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def recorrupted(noisy: Tensor, known: Tensor, *, normals: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """The noisier images z, (N, 1, H, W), and what is known of their noise, (N, 2).

    `normals`: (N, 1, H, W), standard normal. `strength`: a, in units of the noise's standard deviation.
    """
    std = known[:, 1]
    noisier = torch.stack([known[:, 0], std * math.sqrt(1 + strength**2)], dim=1)
    return noisy + strength * std.to(noisy.dtype).view(-1, 1, 1, 1) * normals, noisier


def recorrupted_losses(
    network: Network, noisy: Tensor, known: Tensor, *, normals: Tensor, strength: float, clip: bool
) -> Tensor:
    """The estimate of the squared error of each image, its mean over the pixels: (N,).

    `clip`: whether the noise was clamped; then it is a likelihood in the same units.
    """
    mean, std = (column.view(-1, 1, 1, 1) for column in known.to(noisy.dtype).unbind(dim=1))
    noisier, told = recorrupted(noisy, known, normals=normals, strength=strength)
    m = network(noisier, told) + mean
    if not clip:
        wanted = noisy - std * normals / strength
        return ((m - wanted).square() - std.square() * (1 + strength**-2)).mean(dim=(1, 2, 3))
    added = strength * std
    surprise = -recorruption_log_likelihood(noisy, noisier, m=m, std=std, added=added)
    spread = std * added / (std.square() + added.square()).sqrt()
    # In units of the squared error: where nothing is clamped the expression is that of r2r.
    aside = (0.5 + torch.log(spread) + _HALF_LOG_TAU) * inside(noisy)
    scale = 2 * std.square() * (1 + strength**-2)
    return (scale * (surprise - aside)).mean(dim=(1, 2, 3))


def recorruption_log_likelihood(y: Tensor, z: Tensor, *, m: Tensor, std: Tensor, added: Tensor) -> Tensor:
    """log p(y | z, m) of each pixel, y = clip(N(m, std^2), 0, 1), z ~ N(y, added^2); shapes that broadcast.

    A density inside (0, 1), the logarithm of a probability at its ends.
    """
    total = (std.square() + added.square()).sqrt()
    middle = (added.square() * m + std.square() * z) / total.square()
    spread = std * added / total
    within = _log_normal(z - m, total) + _log_between(-middle / spread, (1 - middle) / spread)
    at_zero = torch.special.log_ndtr(-m / std) + _log_normal(z, added)
    at_one = torch.special.log_ndtr((m - 1) / std) + _log_normal(z - 1, added)
    normaliser = torch.logsumexp(torch.stack([within, at_zero, at_one]), dim=0)
    return log_likelihood(y, m=m, std=std) + _log_normal(z - y, added) - normaliser


def _log_normal(x: Tensor, std: Tensor) -> Tensor:
    return -0.5 * (x / std).square() - torch.log(std) - _HALF_LOG_TAU


def _log_between(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)), low < high, from the side on which both are small."""
    flip = low > 0
    first, second = torch.where(flip, -low, high), torch.where(flip, -high, low)
    upper, lower = torch.special.log_ndtr(first), torch.special.log_ndtr(second)
    difference: Tensor = upper + torch.log1p(-torch.exp((lower - upper).clamp(max=-1e-6)))
    return difference
