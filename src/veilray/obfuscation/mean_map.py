"""The clamp's mean map g(x) = E[clip(x + n, 0, 1)], n ~ N(mean, std^2), and its inverse.

With m = x + mean, a = -m / std, b = (1 - m) / std, and the normal cdf Phi and pdf phi,
    g(x)  = 1 - Phi(b) + m (Phi(b) - Phi(a)) + std (phi(a) - phi(b)),
    g'(x) = Phi(b) - Phi(a) > 0.
An estimator that averages noisy pixels estimates g(x), not x; its output must go through the inverse.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from veilray.errors import UsageError

_ITERATIONS = 60


def mean_map(x: Tensor, *, mean: float, std: float) -> Tensor:
    """The mean of the clamped noisy value of each pixel: any shape, float, in the dtype of `x`; values in (0, 1).

    Computed in float64. Raises UsageError where std is not positive.
    """
    _check(std)
    return clamped_mean(_double(x) + mean, std).to(dtype=x.dtype, device=x.device)


def inverse_mean_map(y: Tensor, *, mean: float, std: float) -> Tensor:
    """The pixel in [0, 1] whose clamped noisy values average `y`: any shape, float, in the dtype of `y`.

    Values of `y` below g(0) give 0 and above g(1) give 1. Newton's method inside a shrinking bracket, in float64.
    Raises UsageError where std is not positive.
    """
    _check(std)
    target = _double(y)
    low, high = torch.zeros_like(target), torch.ones_like(target)
    x = (target - mean).clamp(0.0, 1.0)
    for _ in range(_ITERATIONS):
        value, slope = _mean_and_slope(x + mean, std)
        error = value - target
        low = torch.where(error < 0, x, low)
        high = torch.where(error > 0, x, high)
        newton = x - error / slope
        inside = (newton >= low) & (newton <= high)
        step = torch.where(inside, newton, (low + high) / 2)
        moved = (step - x).abs().max() if x.numel() else torch.zeros(())
        x = step
        if moved < 1e-15:
            break
    ends = clamped_mean(torch.tensor([0.0, 1.0], dtype=torch.float64) + mean, std)
    x = torch.where(target <= ends[0].to(x.device), 0.0, torch.where(target >= ends[1].to(x.device), 1.0, x))
    return x.to(dtype=y.dtype, device=y.device)


def clamped_mean(m: Tensor, std: float | Tensor) -> Tensor:
    """E[clip(z, 0, 1)], z ~ N(m, std^2): any shape and floating dtype, `std` positive; differentiable in `m`."""
    return _mean_and_slope(m, std)[0]


def _mean_and_slope(m: Tensor, std: float | Tensor) -> tuple[Tensor, Tensor]:
    a, b = -m / std, (1.0 - m) / std
    # Phi(b) - Phi(a) from the side on which both are small, so that nothing cancels in the tails.
    slope = torch.where(a > 0, _phi_cdf(-a) - _phi_cdf(-b), _phi_cdf(b) - _phi_cdf(a))
    return _phi_cdf(-b) + m * slope + std * (_phi_pdf(a) - _phi_pdf(b)), slope


def _phi_cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z / math.sqrt(2.0))


def _phi_pdf(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def _double(x: Tensor) -> Tensor:
    # MPS has no float64: there the map is computed on the CPU.
    return x.to(device="cpu" if x.device.type == "mps" else x.device, dtype=torch.float64)


def _check(std: float) -> None:
    if not std > 0:
        raise UsageError(f"std must be positive, not {std}")
