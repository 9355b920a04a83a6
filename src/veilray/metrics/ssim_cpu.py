"""Structural similarity on a CPU by convolutions of memory as it lies.

With s = x + y and d = x - y, of window means us, ud and variances vs, vd: us^2 - ud^2 = 4 ux uy and us^2 + ud^2 =
2 (ux^2 + uy^2), and so vs - vd = 4 vxy and vs + vd = 2 (vx + vy). So SSIM, the product of (2 ux uy + C1) /
(ux^2 + uy^2 + C1) and (2 vxy + C2) / (vx + vy + C2), is

    (us^2 - ud^2 + 2 C1) (vs - vd + 2 C2) / ((us^2 + ud^2 + 2 C1) (vs + vd + 2 C2)),

and four window means are enough: of s, s^2 + 2 C2, d and d^2. Variances being small differences of large means, the
means of s and d over the image are taken off before, and put back on their window means.

A window's mean goes across and then down. Across, all maps are one line of numbers: an output is a weighted mean of
those that follow it, and what runs over the end of a row is cut away with the columns that have no whole window. Down,
each column is a channel of a depthwise convolution.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import conv2d

CPU_PIXELS = 1 << 17
"""Pixels that a CPU handles at a time: a few maps of this size stay in its caches, and the allocator keeps their memory
instead of returning it to the system, which costs more than the arithmetic."""

# Numbers that a processor's vector unit takes together, at the most.
_LANES = 16


def is_fast(dtype: torch.dtype) -> bool:
    """Whether convolutions of `dtype` are fast on a CPU: oneDNN has them in float32, and nothing else has."""
    return dtype == torch.float32 and bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)  # type: ignore[no-untyped-call]


def score_by_convolutions(x: Tensor, y: Tensor, weights: tuple[float, ...], *, c1: float, c2: float) -> Tensor:
    """Mean SSIM of images (B, H, W) -> (B,), floating, on the CPU; no gradient.

    `weights`: of the window's taps at distance 1, 2, ... from its centre, whose weight is 1. `c1` and `c2`: constants
    of the luminance and the contrast-structure term; for sample covariance `c2` is divided by its factor.
    """
    height, width = x.shape[1:]
    margin = 2 * len(weights)
    rows = height - margin
    at_once = max(1, CPU_PIXELS // (height * width))
    strips = min(rows, -(-rows * width // CPU_PIXELS))
    bounds = [rows * strip // strips for strip in range(strips + 1)]
    mean_x, mean_y = x.mean((1, 2), keepdim=True), y.mean((1, 2), keepdim=True)
    centres = torch.stack([mean_x + mean_y, mean_x - mean_y])
    spaces: dict[tuple[int, int], _Space] = {}
    totals = x.new_zeros(len(x))
    with torch.autocast("cpu", enabled=False):
        for first in range(0, len(x), at_once):
            images = slice(first, first + at_once)
            for top, bottom in pairwise(bounds):
                strip = x[images, top : bottom + margin], y[images, top : bottom + margin]
                size = len(strip[0]), bottom - top
                if size not in spaces:
                    spaces[size] = _Space(*size, width, weights, c1=c1, c2=c2, like=x)
                totals[images] += spaces[size].total(*strip, centres[:, images])
    if len(x) > 1 and not totals.isfinite().all():
        # An image's numbers meet its neighbours' with a weight of zero, which infinities and NaN outlast.
        alone = zip(torch.split(x, 1), torch.split(y, 1), strict=True)
        return torch.cat([score_by_convolutions(a, b, weights, c1=c1, c2=c2) for a, b in alone])
    return totals / (rows * (width - margin))


class _Space:
    """Memory and weights for one strip of some pairs of images, used again and again."""

    def __init__(
        self, images: int, rows: int, width: int, weights: tuple[float, ...], *, c1: float, c2: float, like: Tensor
    ) -> None:
        taps = torch.tensor((*reversed(weights), 1.0, *weights), dtype=torch.float64)
        taps /= taps.sum()
        self._across = None if weights == (1.0,) else _band(taps).to(like.dtype)  # None: three of the same weight
        down = taps / 3 if self._across is None else taps
        self._down = down.to(like.dtype).expand(width, 1, 1, -1).contiguous()
        margin = len(taps) - 1
        self._read, self._written = (4, images, rows + margin, width), (4, images, rows, width)
        self._columns = width - margin
        # An output depends on the vector of lanes in its place and on those that follow: the last map's on zeros.
        vectors = -(-math.prod(self._read) // _LANES) + (1 if self._across is None else self._across.shape[-1] - 1)
        self._line = like.new_zeros(vectors * _LANES)
        self._maps = self._line[: math.prod(self._read)].view(self._read).unbind()
        self._c1 = like.new_full(self._written[1:], 2 * c1)
        self._c2 = like.new_full(self._read[1:], 2 * c2)
        self._differences = like.new_empty(2, *self._written[1:])

    def total(self, x: Tensor, y: Tensor, centres: Tensor) -> Tensor:
        """SSIM summed over the windows of a strip of images (B, rows, W) -> (B,).

        `centres` (2, B, 1, 1): means of s and d over each image.
        """
        s, ss, d, dd = self._maps
        torch.add(x, y, out=s).sub_(centres[0])
        torch.addcmul(self._c2, s, s, out=ss)
        torch.sub(x, y, out=d).sub_(centres[1])
        torch.mul(d, d, out=dd)
        means = self._means()
        s, ss, d, dd = means.unbind()
        ss.addcmul_(s, s, value=-1)  # vs + 2 C2
        dd.addcmul_(d, d, value=-1)  # vd
        torch.addcmul(self._c1, s.add_(centres[0]), s, out=s)  # us^2 + 2 C1
        d.add_(centres[1]).square_()  # ud^2
        luminance, structure = torch.sub(means[:2], means[2:], out=self._differences)
        ratio = luminance.mul_(structure)
        luminance, structure = means[:2].add_(means[2:])
        ratio.div_(luminance.mul_(structure))
        columns: Tensor = ratio.sum(1)
        return columns[:, : self._columns].sum(1)

    def _means(self) -> Tensor:
        """Weighted means of the maps over windows: (4, B, rows, W), the columns at the end without meaning."""
        columns = self._sums_across().flatten(0, 1).transpose(1, 2).unsqueeze(2)
        return conv2d(columns, self._down, groups=len(self._down)).permute(0, 2, 3, 1).reshape(self._written)

    def _sums_across(self) -> Tensor:
        """The maps, each pixel the weighted sum of itself and of those right of it: (4, B, rows + margin, W)."""
        count = math.prod(self._read)
        if self._across is None:
            first, second, third = (self._line[start : start + count].view(self._read) for start in range(3))
            return torch.add(first, second).add_(third)
        vectors = self._line.view(1, 1, -1, _LANES).permute(0, 3, 1, 2)
        return conv2d(vectors, self._across).permute(0, 2, 3, 1).reshape(-1)[:count].view(self._read)


def _band(taps: Tensor) -> Tensor:
    """(lanes, lanes, 1, vectors): weights of the numbers of some vectors in each number of the first one's output."""
    vectors = 1 + -(-(len(taps) - 1) // _LANES)
    band = taps.new_zeros(_LANES, vectors * _LANES)
    for lane in range(_LANES):
        band[lane, lane : lane + len(taps)] = taps
    return band.view(_LANES, vectors, 1, _LANES).permute(0, 3, 2, 1)
