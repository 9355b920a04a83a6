"""Where the phantom is drawn: patient coordinates of every pixel, soft shapes whose edges are as wide as a pixel.

Lengths are in frame widths (about 40 cm). x grows to the right of the picture (the patient's left), y downward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy.interpolate import PchipInterpolator

Field = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A rectangle of pixels, each with its place in the patient."""

    x: Field
    """(H, W), float32: patient's right is negative."""
    y: Field
    """(H, W), float32: towards the feet is positive."""
    pixel: float
    """Width of a pixel in patient coordinates: no edge is sharper, so every size shows the same picture."""

    def near(
        self, *, left: float, top: float, right: float, bottom: float
    ) -> tuple[Canvas, tuple[slice, slice]] | None:
        """The part that may show a box of patient coordinates, and where it lies; None where the box is out of view.

        Exact for upright poses; the margin covers the few degrees by which a pose is turned.
        """
        middle_row, middle_column = self.y.shape[0] // 2, self.y.shape[1] // 2
        slack = 0.05
        columns = np.flatnonzero((self.x[middle_row] > left - slack) & (self.x[middle_row] < right + slack))
        rows = np.flatnonzero((self.y[:, middle_column] > top - slack) & (self.y[:, middle_column] < bottom + slack))
        if not len(rows) or not len(columns):
            return None
        place = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        return Canvas(x=self.x[place], y=self.y[place], pixel=self.pixel), place


class Curve:
    """A smooth curve through control points, tabulated so that a whole image is looked up at once; constant outside."""

    _PIECES = 1024

    def __init__(self, knots: Sequence[float], values: Sequence[float]) -> None:
        pieces = self._PIECES
        self._start = float(knots[0])
        self._per_unit = float(pieces / (knots[-1] - knots[0]))
        table = PchipInterpolator(knots, values)(np.linspace(knots[0], knots[-1], pieces + 1))
        # Straight pieces: value = offset[i] + slope[i] * place, where place counts pieces and i is its floor.
        slope = np.append(np.diff(table), 0.0)
        self._slope = slope.astype(np.float32)
        self._offset = (table - slope * np.arange(pieces + 1)).astype(np.float32)

    def __call__(self, at: Field) -> Field:
        """The curve at each element of `at`; same shape."""
        place = np.clip((at - self._start) * self._per_unit, 0.0, self._PIECES)
        index = place.astype(np.intp)
        value: Field = self._offset.take(index) + self._slope.take(index) * place
        return value


def soft_root(value: Field, softness: float) -> Field:
    """Square root of the positive part, eased in from -softness to softness: a ball's thickness as a pixel sees it."""
    eased = np.clip(value, -softness, softness) + softness
    eased *= eased * (0.25 / softness)
    eased += np.maximum(value - softness, 0)
    root: Field = np.sqrt(eased)
    return root


def step(distance: Field, width: float) -> Field:
    """0 below -width/2, 1 above width/2, smooth between."""
    t = np.clip(distance * (1.0 / width) + 0.5, 0.0, 1.0)
    rise: Field = t * t * (3.0 - 2.0 * t)
    return rise


def ball(canvas: Canvas, *, centre: tuple[float, float], radii: tuple[float, float], turn: float = 0.0) -> Field:
    """Thickness of an ellipsoid relative to its middle, 0 to 1; `turn` in radians, clockwise as displayed."""
    dx, dy = canvas.x - centre[0], canvas.y - centre[1]
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    u, v = (dx * cos + dy * sin) * (1 / radii[0]), (dy * cos - dx * sin) * (1 / radii[1])
    return soft_root(1.0 - u * u - v * v, canvas.pixel / min(radii))


def tube(canvas: Canvas, *, start: tuple[float, float], end: tuple[float, float], radii: tuple[float, float]) -> Field:
    """Signed distance to a round-ended tube whose radius goes from radii[0] to radii[1]; positive inside."""
    run, fall = end[0] - start[0], end[1] - start[1]
    square = run * run + fall * fall
    dx, dy = canvas.x - start[0], canvas.y - start[1]
    share = np.clip(dx * (run / square) + dy * (fall / square), 0.0, 1.0)
    dx -= share * run
    dy -= share * fall
    inside: Field = radii[0] + (radii[1] - radii[0]) * share - np.sqrt(dx * dx + dy * dy)
    return inside


def texture(
    rng: np.random.Generator, *, size: int, slope: float, low: float, high: float, shift: tuple[float, float]
) -> Field:
    """(size, size) noise of unit deviation whose amplitude falls with frequency ** -slope between `low` and `high`.

    Frequencies are in cycles per frame. The same coefficients serve every size: each is damped by what a pixel's
    area averages away, and those beyond the pixel grid are left out.
    """
    reach = 128
    spectrum = rng.standard_normal((2 * reach, 2 * (reach + 1)), dtype=np.float32).view(np.complex64)
    fy, fx = np.fft.fftfreq(2 * reach, 1 / (2 * reach)), np.arange(reach + 1.0)
    square = np.maximum(fy[:, None] ** 2 + fx**2, 1).astype(np.float32)
    amplitude = square ** np.float32(-slope / 2) * ((square >= low * low) & (square <= high * high))
    amplitude[:, 0] = 0  # its two halves would have to be conjugates
    # Of each pair of opposite coefficients the half spectrum keeps one, of two normal parts each.
    amplitude *= 0.5 / np.sqrt((amplitude**2).sum())
    spectrum *= amplitude
    middle = 0.5 / size  # pixels stand for their centres
    spectrum *= (np.sinc(fy / size) * np.exp(2j * np.pi * fy * (middle - shift[1]))).astype(np.complex64)[:, None]
    spectrum *= (np.sinc(fx / size) * np.exp(2j * np.pi * fx * (middle - shift[0]))).astype(np.complex64)
    keep = min(reach, (size + 1) // 2)
    full = np.zeros((size, size // 2 + 1), dtype=np.complex64)
    full[:keep, :keep] = spectrum[:keep, :keep]
    full[size - keep + 1 :, :keep] = spectrum[2 * reach - keep + 1 :, :keep]
    field: Field = scipy.fft.irfft2(full, s=(size, size), norm="forward")
    return field


def stroke(size: int, starts: Field, ends: Field, radii: Field) -> Field:
    """Summed thickness of many short tubes, each with a Gaussian cross-section of a round tube's area.

    Args:
        size: height and width of the picture.
        starts, ends: (N, 2), (column, row) in pixels, fractions kept.
        radii: (N,) in pixels. A tube thinner than a pixel keeps its area and loses its contrast.

    Returns:
        (size, size), in pixels of thickness. Tubes laid end to end join without a bead.
    """
    sigma = np.hypot(radii / 2, 0.35)
    spans = (np.ceil((np.hypot(*(ends - starts).T) + 6 * sigma + 2) / 4) * 4).astype(int)
    seen = np.all(np.abs(starts + ends - size) < size + spans[:, None], axis=1)
    margin = int(spans.max(initial=0)) + 1
    total = np.zeros((size + 2 * margin, size + 2 * margin), dtype=np.float32)
    for span in np.unique(spans[seen]):
        chosen = np.flatnonzero(seen & (spans == span))
        for part in np.array_split(chosen, 1 + len(chosen) * int(span) ** 2 // _PATCH_PIXELS):
            _stroke_patches(total, starts[part] + margin, ends[part] + margin, radii[part], sigma[part], int(span))
    return total[margin : margin + size, margin : margin + size]


_PATCH_PIXELS = 2**18
"""Tubes are drawn together up to this many pixels, which stay in the cache."""


def _stroke_patches(total: Field, starts: Field, ends: Field, radii: Field, sigma: Field, span: int) -> None:
    """Add tubes that each fit a patch of span x span pixels inside `total`."""
    along = ends - starts
    length = np.maximum(np.hypot(*along.T), 1e-6)
    unit = (along / length[:, None]).astype(np.float32)
    corner = np.rint((starts + ends) / 2 - span / 2).astype(np.int64)
    steps = np.arange(span)
    offset = (corner[:, None] + steps[None, :, None] - starts[:, None]).astype(np.float32)
    # Ends fade over a blend, complementary to the next tube's beginning.
    blend = np.maximum(1.2, 1.5 * sigma).astype(np.float32)
    narrow = (np.sqrt(0.5) / sigma).astype(np.float32)
    forward = _outer_sum(offset, unit / blend[:, None]) + np.float32(0.5)
    across = _outer_sum(offset, np.stack([unit[:, 1], -unit[:, 0]], axis=1) * narrow[:, None])
    profile = np.exp(-across * across)
    profile *= np.clip(forward, 0, 1) - np.clip(forward - (length / blend).astype(np.float32)[:, None, None], 0, 1)
    profile *= (radii**2 * np.sqrt(np.pi / 2) / sigma).astype(np.float32)[:, None, None]
    place = (corner[:, 1] * total.shape[1] + corner[:, 0])[:, None, None] + (steps[:, None] * total.shape[1] + steps)
    added = np.bincount(place.ravel(), weights=profile.ravel(), minlength=total.size)
    total += added.reshape(total.shape).astype(np.float32)


def _outer_sum(offset: Field, direction: Field) -> Field:
    """(N, span, span): offset along (column, row) times direction, summed, rows first."""
    scaled = offset * direction[:, None]
    summed: Field = scaled[:, :, 1, None] + scaled[:, None, :, 0]
    return summed
