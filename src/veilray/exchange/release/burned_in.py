"""Burned-in text: looked for before the noise, since large letters are read through it and denoisers restore them.

What looks like text is kept back for a person to look at. The search is for rows of small shapes of strong contrast and
even height. It misses handwriting, faint, slanted and very large or small letters, fewer than three in a row, and
whatever a header hides elsewhere; `benchmarks/burned_in.py` measures how often it finds planted text and how often it
flags what is none. It is a net, no guarantee.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veilray.cohort.leaving import Box
from veilray.images.radiograph import FloatImage

MIN_SIDE = 64
"""Smaller images are not searched: three letters that a person could read hardly fit."""

# Images with a shorter side of at least twice this are searched several times: as they are for small letters, at a
# half, a quarter, ... of their size for larger ones, and last at about this side for the largest.
_SEARCHED_SIDE = 512

_CONTRAST = 0.25
"""Against what surrounds a stroke, in units of the [0, 1] range."""
_MIN_LETTERS = 3
# Letter heights, in pixels and as a share of the image's shorter side.
_LEAST_HEIGHT, _MOST_HEIGHT = 4, 0.1
_SMALL_LETTERS = 24
"""Height, in pixels of the image that is searched, up to which letters are looked for before the last time."""


@dataclass(frozen=True)
class _Shape:
    """A connected shape: a letter, or several that touch."""

    top: int
    left: int
    bottom: int
    right: int
    letters: int
    """How many letters it may be: 1, or more if it is wide and has strokes for several."""

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


def find_text(pixels: FloatImage) -> list[Box]:
    """Regions of one image, (H, W) float32 in [0, 1], that look like lines of text, bright or dark; none if clean."""
    if min(pixels.shape) < MIN_SIDE:
        return []
    boxes: dict[Box, None] = {}
    for step in _steps(min(pixels.shape)):
        small = _reduced(pixels, step)
        last = min(small.shape) < 2 * _SEARCHED_SIDE
        most = max(_LEAST_HEIGHT + 1, round(_MOST_HEIGHT * min(small.shape))) if last else _SMALL_LETTERS
        for look in (small, 1 - small):
            lines = _lines(_letters(look, most=most))
            boxes |= dict.fromkeys(Box(*(step * number for number in _around(line, small.shape))) for line in lines)
    return [box for box in boxes if not any(_holds(other, box) for other in boxes if other != box)]


def _steps(side: int) -> list[int]:
    """By how much an image of that shorter side is reduced, time after time: 1, 2, 4, ... until it is small enough."""
    last = max(1, side // _SEARCHED_SIDE)
    return [*(2**power for power in range((last - 1).bit_length())), last]


def _holds(outer: Box, inner: Box) -> bool:
    return (
        outer.top <= inner.top
        and outer.left <= inner.left
        and inner.top + inner.height <= outer.top + outer.height
        and inner.left + inner.width <= outer.left + outer.width
    )


def _reduced(pixels: FloatImage, step: int) -> FloatImage:
    """Means over blocks of step x step pixels; what is left over at the ends is dropped."""
    if step == 1:
        return pixels
    height, width = (side // step for side in pixels.shape)
    small = np.zeros((height, width), dtype=np.float32)
    for row in range(step):
        for column in range(step):
            small += pixels[row : height * step : step, column : width * step : step]
    small /= np.float32(step * step)
    return small


def _letters(pixels: FloatImage, *, most: int) -> list[_Shape]:
    """Small shapes, at most `most` high, brighter than what is around, with strokes thinner than themselves."""
    from scipy import ndimage

    # Where no step between neighbours is steep there is no stroke: most radiographs end here.
    steep = np.zeros(pixels.shape, dtype=bool)
    steep[:, 1:] |= np.abs(np.diff(pixels, axis=1)) > _CONTRAST / 2
    steep[1:] |= np.abs(np.diff(pixels, axis=0)) > _CONTRAST / 2
    if steep.sum() < 8 * _MIN_LETTERS:
        return []
    stroke = max(5, most // 2) | 1
    mask = pixels - _opened(pixels, stroke) > _CONTRAST
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    shapes = []
    for number, slices in enumerate(ndimage.find_objects(labels), start=1):
        height, width = (one.stop - one.start for one in slices)
        if not (_LEAST_HEIGHT <= height <= most and width <= 12 * height):
            continue
        if _like_a_letter(labels[slices] == number, steep[slices]):
            letters = max(1, min(round(width / (0.8 * height)), _strokes(pixels[slices]) // 2))
            shapes.append(_Shape(slices[0].start, slices[1].start, slices[0].stop, slices[1].stop, letters))
    return shapes


def _opened(pixels: FloatImage, size: int) -> FloatImage:
    """The grey-scale opening by a square: what is left when everything bright and thinner than `size` is taken off."""
    half = size // 2
    for extreme in (np.minimum, np.maximum):
        for _ in range(2):  # along one axis, then, turned, along the other
            pixels = _extreme_of_windows(np.pad(pixels, ((half, half), (0, 0)), mode="edge"), size, extreme).T
    return pixels


def _extreme_of_windows(pixels: FloatImage, size: int, extreme: np.ufunc) -> FloatImage:
    """The least or greatest of every `size` pixels in a row along the first axis, from windows that double in size."""
    reach = 1
    while reach < size:
        step = min(reach, size - reach)
        pixels = extreme(pixels[:-step], pixels[step:])
        reach += step
    return pixels


def _like_a_letter(inside: npt.NDArray[np.bool_], steep: npt.NDArray[np.bool_]) -> bool:
    share = float(inside.mean())
    edge = float((steep & inside).sum()) / float(inside.sum())
    return 0.15 <= share <= 0.95 and edge >= 0.3


def _strokes(pixels: FloatImage) -> int:
    """How often a row of the shape goes from dark to bright or back: the typical row, since letters differ."""
    change = np.diff(pixels, axis=1)
    counts = []
    for row in change:
        signs = np.sign(row[np.abs(row) > _CONTRAST / 4])
        counts.append(1 + int((signs[1:] != signs[:-1]).sum()) if len(signs) else 0)
    return int(np.median(counts))


def _lines(shapes: list[_Shape]) -> list[list[_Shape]]:
    """Groups of shapes that stand in a row, of about one height and close together, long enough to be a word."""
    lines: list[list[_Shape]] = []
    for shape in sorted(shapes, key=lambda shape: shape.left):
        for line in lines:
            if _continues(line[-1], shape):
                line.append(shape)
                break
        else:
            lines.append([shape])
    return [line for line in lines if sum(shape.letters for shape in line) >= _MIN_LETTERS]


def _continues(last: _Shape, shape: _Shape) -> bool:
    height = max(last.height, shape.height)
    level = abs(last.bottom - shape.bottom) <= 0.25 * height or abs(last.top - shape.top) <= 0.25 * height
    alike = min(last.height, shape.height) >= 0.6 * height
    return level and alike and -0.2 * height <= shape.left - last.right <= height


def _around(line: list[_Shape], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a line, with a margin for the blur around letters and for what touched them."""
    top, left = min(one.top for one in line), min(one.left for one in line)
    bottom, right = max(one.bottom for one in line), max(one.right for one in line)
    margin = 1 + (bottom - top) // 3
    top, left = max(0, top - margin), max(0, left - margin)
    bottom, right = min(shape[0], bottom + margin), min(shape[1], right + margin)
    return top, left, bottom - top, right - left
