"""Structural similarity, after Wang, Bovik, Sheikh and Simoncelli, IEEE Trans. Image Processing 13 (2004) 600-612.

With d = x - y, and q = (mean of d)^2, the luminance term (2 ux uy + C1) / (ux^2 + uy^2 + C1) is 1 - u with
u = q / (2 ux uy + q + C1), and the contrast-structure term (2 vxy + C2) / (vx + vy + C2) is 1 - v with
v = vd / (2 vxy + vd + C2), vd being the variance of d. So four window sums are enough (x, y, d^2 and x y), equal images
score exactly 1, and the mean over the image is 1 - mean(u) - mean(v) + mean(u v).

Large images on a CPU, where no gradient is wanted, go another way: see `ssim_cpu`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from veilray.errors import UsageError
from veilray.metrics.check import check_data_range, check_pair
from veilray.metrics.ssim_cpu import CPU_PIXELS, is_fast, score_by_convolutions

Window = Literal["gaussian", 3]

K1, K2 = 0.01, 0.03
"""Constants of Wang et al., section III-B."""

# Weights of a window's taps at distance 1, 2, ... from its centre, whose weight is 1; sums are normalised at the end.
_GAUSSIAN = tuple(math.exp(-(distance**2) / (2 * 1.5**2)) for distance in range(1, 6))
_UNIFORM = (1.0,)

# Images from this size on are worth what convolutions take to be set up.
_LARGE = 1 << 14


def ssim(output: Tensor, target: Tensor, *, data_range: float = 1.0, window: Window = "gaussian") -> Tensor:
    """Mean structural similarity of each image, as scikit-image computes it, its border crop included.

    `output` and `target` are (N, C, H, W), of one floating dtype, on one device; several channels are averaged.
    `window` is "gaussian" (11 x 11, sigma 1.5, population covariance: `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False` in scikit-image) or 3 (uniform 3 x 3, sample covariance: `win_size=3`).
    Returns (N,), in [-1, 1], of the inputs' dtype (float32 at least); differentiable. Raises UsageError for other
    shapes or dtypes, and for images smaller than the window.
    """
    weights, covariance_scale = _window(window)
    check_pair(output, target, smallest=2 * len(weights) + 1)
    check_data_range(data_range)
    count, channels, height, width = output.shape
    dtype = torch.promote_types(output.dtype, torch.float32)
    x = output.reshape(count * channels, height, width).to(dtype)
    y = target.reshape(count * channels, height, width).to(dtype)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2 / covariance_scale
    pixels = height * width
    if x.device.type != "cpu":
        at_once, score = max(1, len(x)), _score_in_strips
    elif pixels >= _LARGE and is_fast(dtype) and not (torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)):
        at_once, score = max(1, len(x)), score_by_convolutions
    else:
        at_once, score = max(1, CPU_PIXELS // pixels), _score_in_strips
    means = [
        score(a, b, weights, c1=c1, c2=c2)
        for a, b in zip(torch.split(x, at_once), torch.split(y, at_once), strict=True)
    ]
    return torch.cat(means).view(count, channels).mean(dim=1)


def _window(window: Window) -> tuple[tuple[float, ...], float]:
    match window:
        case "gaussian":
            return _GAUSSIAN, 1.0
        case 3:
            return _UNIFORM, 9 / 8  # sample covariance divides by 9 - 1
        case _:
            raise UsageError(f"window = {window!r}: choose 'gaussian' or 3")


def _score_in_strips(x: Tensor, y: Tensor, weights: tuple[float, ...], *, c1: float, c2: float) -> Tensor:
    """Mean SSIM of images (B, H, W) -> (B,), a strip of rows at a time where they are large."""
    margin = 2 * len(weights)
    height, width = x.shape[1] - margin, x.shape[2] - margin
    centres = x.mean(dim=(1, 2), keepdim=True), y.mean(dim=(1, 2), keepdim=True)
    rows = max(4 * margin, CPU_PIXELS // x.shape[2]) if x.device.type == "cpu" else height

    loss = x.new_zeros(len(x))
    for top in range(0, height, rows):
        strip = slice(top, top + rows + margin)
        loss = loss + _loss(x[:, strip], y[:, strip], centres, weights, c1=c1, c2=c2)
    return 1.0 - loss / (height * width)


def _loss(
    x: Tensor, y: Tensor, centres: tuple[Tensor, Tensor], weights: tuple[float, ...], *, c1: float, c2: float
) -> Tensor:
    """1 - SSIM summed over all windows: images (B, H, W) -> (B,).

    `centres` are the images' means: variances are small differences of large sums, so each image is first moved near
    zero. A window's weights add up to `total`. A pass over memory costs more than its
    arithmetic, hence the in-place operations, none of which destroys what the gradient needs.
    """
    total = (1.0 + 2.0 * sum(weights)) ** 2

    def sums(maps: Tensor) -> Tensor:
        return _sums_along(_sums_along(maps, weights, dim=1), weights, dim=2)

    offset_x, offset_y = (total * centre for centre in centres)
    x, y = x - centres[0], y - centres[1]
    sum_x, sum_y, sum_xy, sum_dd = sums(x), sums(y), sums(x * y), sums((x - y).square())
    sum_d = sum_x - sum_y
    v = sum_dd.addcmul_(sum_d, sum_d, value=-1.0 / total)  # `total` times vd
    # (2 vxy + vd + C2) / 2, times `total`
    half = sum_xy.addcmul_(sum_x, sum_y, value=-1.0 / total).add_(v, alpha=0.5).add_(total * c2 / 2)
    v = v.div_(half)
    # With the images moved back: q, and (2 ux uy + q + C1) / 2, both times `total` squared
    q = (sum_d + (offset_x - offset_y)).square()
    half = (sum_x + offset_x).mul_(sum_y + offset_y).add_(q, alpha=0.5).add_(total**2 * c1 / 2)
    u = q.div_(half)
    loss = (u.sum(dim=(1, 2)) + v.sum(dim=(1, 2))) / 2
    return loss - u.mul_(v).sum(dim=(1, 2)) / 4


def _sums_along(maps: Tensor, weights: tuple[float, ...], *, dim: int) -> Tensor:
    """Weighted sums over the taps that lie wholly inside, so `dim` loses len(weights) places at either end."""
    radius = len(weights)
    size = maps.shape[dim] - 2 * radius

    def pair(distance: int) -> Tensor:
        return maps.narrow(dim, radius - distance, size) + maps.narrow(dim, radius + distance, size)

    sums = torch.add(maps.narrow(dim, radius, size), pair(1), alpha=weights[0])
    for distance, weight in enumerate(weights[1:], start=2):
        sums.add_(pair(distance), alpha=weight)
    return sums
