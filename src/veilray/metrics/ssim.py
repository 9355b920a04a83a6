"""Structural similarity, after Wang, Bovik, Sheikh and Simoncelli, IEEE Trans. Image Processing 13 (2004) 600-612.

With d = x - y, and q = (mean of d)^2, the luminance term (2 ux uy + C1) / (ux^2 + uy^2 + C1) is 1 - u with
u = q / (2 ux uy + q + C1), and the contrast-structure term (2 vxy + C2) / (vx + vy + C2) is 1 - v with
v = vd / (2 vxy + vd + C2), vd being the variance of d. So four window sums are enough (x, y, d^2 and x y), equal images
score exactly 1, and the mean over the image is 1 - mean(u) - mean(v) + mean(u v).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from veilray.errors import UsageError
from veilray.metrics.check import check_data_range, check_pair

Window = Literal["gaussian", 3]

K1, K2 = 0.01, 0.03
"""Constants of Wang et al., section III-B."""

# Weights of a window's taps at distance 1, 2, ... from its centre, whose weight is 1; sums are normalised at the end.
_GAUSSIAN = tuple(math.exp(-(distance**2) / (2 * 1.5**2)) for distance in range(1, 6))
_UNIFORM = (1.0,)

# Pixels that a CPU handles at a time: a few maps of this size stay in its caches, and the allocator keeps their memory
# instead of returning it to the system, which costs more than the arithmetic.
_CPU_PIXELS = 1 << 17

# Images that fill a CPU's vector registers when they lie side by side, and the largest that are worth laying out so.
_LANES = 8
_LANE_PIXELS = 1 << 18

Sums = Callable[[Tensor], Tensor]


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
    at_once = _images_at_once(x, weights)
    score = _score_side_by_side if at_once == _LANES else _score_in_strips
    means = [
        score(a, b, weights, c1=c1, c2=c2)
        for a, b in zip(torch.split(x, at_once), torch.split(y, at_once), strict=True)
    ]
    return torch.cat(means).view(count, channels).mean(dim=1)


def _images_at_once(images: Tensor, weights: tuple[float, ...]) -> int:
    count, height, width = images.shape
    if images.device.type != "cpu":
        return max(1, count)
    # oneDNN's convolution is the fastest way through many taps, but only in float32, and with images as channels.
    if len(weights) > 1 and count >= _LANES and images.dtype == torch.float32 and height * width <= _LANE_PIXELS:
        return _LANES
    return max(1, _CPU_PIXELS // (height * width))


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
    rows = max(4 * margin, _CPU_PIXELS // x.shape[2]) if x.device.type == "cpu" else height

    def sums(maps: Tensor) -> Tensor:
        return _sums_along(_sums_along(maps, weights, dim=1), weights, dim=2)

    loss = x.new_zeros(len(x))
    for top in range(0, height, rows):
        strip = slice(top, top + rows + margin)
        loss = loss + _loss(x[:, strip], y[:, strip], centres, sums, _total(weights), dim=(1, 2), c1=c1, c2=c2)
    return 1.0 - loss / (height * width)


def _score_side_by_side(x: Tensor, y: Tensor, weights: tuple[float, ...], *, c1: float, c2: float) -> Tensor:
    """Mean SSIM of images (B, H, W) -> (B,), laid out as (H, W, B)."""
    margin = 2 * len(weights)
    centres = x.mean(dim=(1, 2)), y.mean(dim=(1, 2))
    taps = x.new_tensor((*reversed(weights), 1.0, *weights)).expand(len(x), 1, 1, -1)

    def sums(maps: Tensor) -> Tensor:
        channels = maps.unsqueeze(0).permute(0, 3, 1, 2)
        with torch.autocast("cpu", enabled=False):
            along_rows = F.conv2d(channels, taps, groups=len(taps))
            return F.conv2d(along_rows, taps.transpose(2, 3), groups=len(taps)).permute(0, 2, 3, 1).squeeze(0)

    loss = _loss(_last(x), _last(y), centres, sums, _total(weights), dim=(0, 1), c1=c1, c2=c2)
    return 1.0 - loss / ((x.shape[1] - margin) * (x.shape[2] - margin))


def _last(images: Tensor) -> Tensor:
    """(B, H, W) -> (H, W, B) in memory. The padding keeps images of 2^n pixels out of one another's cache lines."""
    _, height, width = images.shape
    return F.pad(images.flatten(1), (0, 16)).t()[: height * width].contiguous().view(height, width, -1)


def _total(weights: tuple[float, ...]) -> float:
    """Sum of a window's weights."""
    return (1.0 + 2.0 * sum(weights)) ** 2


def _loss(
    x: Tensor,
    y: Tensor,
    centres: tuple[Tensor, Tensor],
    sums: Sums,
    total: float,
    *,
    dim: tuple[int, int],
    c1: float,
    c2: float,
) -> Tensor:
    """1 - SSIM summed over all windows: images whose rows and columns are `dim` -> (B,).

    `centres` are the images' means: variances are small differences of large sums, so each image is first moved near
    zero. `sums` takes sums over windows, with weights that add up to `total`. A pass over memory costs more than its
    arithmetic, hence the in-place operations, none of which destroys what the gradient needs.
    """
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
    loss = (u.sum(dim=dim) + v.sum(dim=dim)) / 2
    return loss - u.mul_(v).sum(dim=dim) / 4


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
