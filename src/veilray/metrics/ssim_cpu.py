"""Structural similarity on a CPU by products with banded matrices.

With s = x + y and d = x - y, of window means us, ud and variances vs, vd: us^2 - ud^2 = 4 ux uy and us^2 + ud^2 =
2 (ux^2 + uy^2), and so vs - vd = 4 vxy and vs + vd = 2 (vx + vy). So SSIM, the product of (2 ux uy + C1) /
(ux^2 + uy^2 + C1) and (2 vxy + C2) / (vx + vy + C2), is

    (us^2 - ud^2 + 2 C1) (vs - vd + 2 C2) / ((us^2 + ud^2 + 2 C1) (vs + vd + 2 C2)),

and four window sums are enough: of s, d and their squares. Variances being small differences of large sums, the image's
mean is taken off s and d before, and put back on their window means.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

CPU_PIXELS = 1 << 17
"""Pixels that a CPU handles at a time: a few maps of this size stay in its caches, and the allocator keeps their memory
instead of returning it to the system, which costs more than the arithmetic."""

# Rows and columns of a product's output: its matrix is a band, so that more of them multiply more zeros, and fewer
# keep a processor's vector units idle.
_ROWS, _COLUMNS = 8, 32


def score_by_products(x: Tensor, y: Tensor, weights: tuple[float, ...], *, c1: float, c2: float) -> Tensor:
    """Mean SSIM of images (B, H, W) -> (B,), floating, on the CPU; no gradient.

    `weights`: of the window's taps at distance 1, 2, ... from its centre, whose weight is 1. `c1` and `c2`: constants
    of the luminance and the contrast-structure term; for sample covariance `c2` is divided by its factor.
    """
    height, width = x.shape[1:]
    margin = 2 * len(weights)
    strips = -(-(height - margin) * width // CPU_PIXELS)
    bounds = [(height - margin) * strip // strips for strip in range(strips + 1)]
    spaces = {rows: _Space(width, rows, weights, like=x) for rows in {b - a for a, b in pairwise(bounds)}}
    totals = x.new_zeros(len(x))
    means = zip(x.mean((1, 2)).tolist(), y.mean((1, 2)).tolist(), strict=True)
    with torch.autocast("cpu", enabled=False):
        for index, (mean_x, mean_y) in enumerate(means):
            for top, bottom in pairwise(bounds):
                strip = x[index, top : bottom + margin], y[index, top : bottom + margin]
                totals[index] += spaces[bottom - top].total(*strip, (mean_x + mean_y, mean_x - mean_y), c1=c1, c2=c2)
            if not math.isfinite(mean_x + mean_y):  # zeros of a band times what is not finite would spoil the next
                for space in spaces.values():
                    space.clear()
    return totals / ((height - margin) * (width - margin))


class _Space:
    """Memory for one strip of a pair of images, used again and again: to have new memory costs more than to compute.

    A sum down the rows of a map M is a product B M with a band B of the window's weights; it goes in blocks of some
    rows, B being the same for all. So it goes across the columns, whose blocks come to lie one after another:
    (blocks, 4, rows, columns). Two stretches of memory serve four steps by turns, each reading what the one before
    wrote into the other stretch:

    step | stretch | written as       | read as          | holds
    1    | one     | _maps            | _down            | s, d, s^2, d^2; _down: blocks of rows, which overlap
    2    | other   | _summed          | _across          | sums down; _across: blocks of columns, which overlap
    3    | one     | _both            | _sums            | window sums, over step 1; _sums: without the rows of padding
    4    | other   | _ratio, _factor  | _ratio, _factor  | the terms, over step 2; _outside: padding columns of _ratio
    """

    def __init__(self, width: int, rows: int, weights: tuple[float, ...], *, like: Tensor) -> None:
        margin = 2 * len(weights)
        columns = width - margin
        down, across = -(-rows // _ROWS), -(-columns // _COLUMNS)  # blocks
        high, wide = down * _ROWS, across * _COLUMNS
        over = margin + _COLUMNS  # the last block reads past the end; what it makes of that is cut away
        maps = 4 * (high + margin) * width
        one, other = self._space = like.new_zeros(2, max(maps, 4 * high * wide) + over).unbind()
        in_rows = one[:maps].view(4, high + margin, width)
        steps = (in_rows.stride(0), _ROWS * width, width, 1)
        self._down = in_rows.as_strided((4, down, _ROWS + margin, width), steps).unbind()
        self._summed = other[: 4 * high * width].view(4, down, _ROWS, width).unbind()
        self._across = other.as_strided((across, 4 * high, _COLUMNS + margin), (_COLUMNS, width, 1))
        self._both = one[: 4 * high * wide].view(across, 4 * high, _COLUMNS)
        self._band_down = _band(weights, _ROWS, like=like).expand(down, -1, -1)
        self._band_across = _band(weights, _COLUMNS, like=like).t().contiguous().expand(across, -1, -1)

        self._maps = in_rows[:, : rows + margin].unbind()
        self._sums = self._both.view(across, 4, high, _COLUMNS)[:, :, :rows].unbind(1)
        spare = other[: 2 * high * wide].view(2, across, high, _COLUMNS)[:, :, :rows]
        self._ratio, self._factor = spare.unbind()
        self._outside = self._ratio[-1, :, columns - wide + _COLUMNS :]

    def clear(self) -> None:
        """Forget the last image."""
        for memory in self._space:
            memory.zero_()

    def total(self, x: Tensor, y: Tensor, centres: tuple[float, float], *, c1: float, c2: float) -> Tensor:
        """SSIM summed over the windows of a strip (rows, W). `centres` are the means of s and d over the image."""
        s, d, ss, dd = self._maps
        torch.add(x, y, out=s).sub_(centres[0])
        torch.sub(x, y, out=d).sub_(centres[1])
        torch.mul(s, s, out=ss)
        torch.mul(d, d, out=dd)
        for blocks, sums in zip(self._down, self._summed, strict=True):
            torch.bmm(self._band_down, blocks, out=sums)
        torch.bmm(self._across, self._band_across, out=self._both)
        s, d, ss, dd = self._sums
        ratio, factor = self._ratio, self._factor
        ss.sub_(torch.mul(s, s, out=ratio)).add_(2 * c2)
        dd.sub_(torch.mul(d, d, out=ratio))
        s.add_(centres[0]).square_().add_(2 * c1)
        d.add_(centres[1]).square_()
        # 2 (2 vxy + C2) = vs - vd + 2 C2 over 2 (vx + vy + C2) = vs + vd + 2 C2, and so for the means
        torch.sub(ss, dd, out=ratio).mul_(torch.sub(s, d, out=factor))
        ratio.div_(ss.add_(dd).mul_(s.add_(d)))
        self._outside.zero_()
        return ratio.sum()


def _band(weights: tuple[float, ...], size: int, *, like: Tensor) -> Tensor:
    """(size, size + 2 len(weights)): the window's weights, which add up to 1, each row one place further right."""
    taps = torch.tensor((*reversed(weights), 1.0, *weights), dtype=torch.float64)
    band = torch.zeros(size, size + len(taps) - 1, dtype=torch.float64)
    for row in range(size):
        band[row, row : row + len(taps)] = taps / taps.sum()
    return band.to(like.dtype)
