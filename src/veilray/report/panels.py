"""Panels of radiographs: noisy, restored, clean and difference images with a magnified detail, as PNG data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

from veilray.evaluation.comparison import Role
from veilray.evaluation.panels import Panel
from veilray.images.radiograph import FloatImage

_LARGEST_SIDE = 512
_SMALL_SIDE = 128
_DETAIL_SHARE = 4
_COLOURS = "RdBu_r"


@dataclass(frozen=True, kw_only=True)
class Square:
    """A square detail of an image, in pixels, and in per cent of the image for the mark on it."""

    top: int
    left: int
    side: int
    height: int
    width: int

    @property
    def percent(self) -> dict[str, float]:
        """Position and size of the mark, in per cent of the image's sides."""
        return {
            "left": 100 * self.left / self.width,
            "top": 100 * self.top / self.height,
            "width": 100 * self.side / self.width,
            "height": 100 * self.side / self.height,
        }

    def cut(self, pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """(H, W, ...) -> (side, side, ...)."""
        return pixels[self.top : self.top + self.side, self.left : self.left + self.side]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture of a panel with its magnified detail."""

    caption: str
    psnr: float | None
    image: str
    """PNG data URI of the whole."""
    detail: str
    """PNG data URI of the detail."""
    is_difference: bool


@dataclass(frozen=True, kw_only=True)
class PanelView:
    """A panel, ready for the page."""

    image_id: str
    role: Role
    square: Square
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class SmallView:
    """One of the images with the lowest PSNR, small, ready for the page."""

    image_id: str
    tiles: tuple[Tile, ...]
    """Noisy input, each model's output, clean; without details."""


def small_view(panel: Panel, labels: Sequence[str]) -> SmallView:
    """The pictures of a panel, small."""
    greys = _greys(panel, labels)
    return SmallView(
        image_id=panel.image_id,
        tiles=tuple(
            Tile(
                caption=caption,
                psnr=psnr,
                image=_data_uri(_grey(pixels), largest=_SMALL_SIDE),
                detail="",
                is_difference=False,
            )
            for caption, psnr, pixels in greys
        ),
    )


def view(panel: Panel, labels: Sequence[str], *, limit: float) -> PanelView:
    """Draw a panel: noisy, each arm in the order of `labels`, clean, then each arm's difference within +-limit."""
    square = busiest_square(panel.clean)
    tiles = [_tile(caption, psnr, _grey(pixels), square) for caption, psnr, pixels in _greys(panel, labels)]
    for label in labels:
        coloured = _coloured(panel.outputs[label] - panel.clean, limit)
        tiles.append(_tile(f"{label} − clean", None, coloured, square, is_difference=True))
    return PanelView(image_id=panel.image_id, role=panel.role, square=square, tiles=tuple(tiles))


def difference_limit(panels: Sequence[Panel]) -> float:
    """The end of the colour scale that panels share: 99.5 % of their differences lie within, rounded up to 0.01."""
    sizes = [np.abs(output - panel.clean).ravel() for panel in panels for output in panel.outputs.values()]
    largest = float(np.quantile(np.concatenate(sizes), 0.995)) if sizes else 0.0
    return max(0.01, float(np.ceil(100 * largest)) / 100)


def colour_bar() -> str:
    """The colour scale of the difference images from its negative to its positive end, as a PNG data URI."""
    return _data_uri(_coloured(np.linspace(-1.0, 1.0, 256, dtype=np.float32)[np.newaxis], 1.0))


def busiest_square(clean: FloatImage) -> Square:
    """The square of a quarter of the shorter side that holds the most structure, away from the border.

    Structure is the sum of absolute gradients, so that the magnified detail shows edges rather than a flat field, and
    the choice depends on the clean image alone.
    """
    height, width = clean.shape
    side = max(1, min(height, width) // _DETAIL_SHARE)
    steps = np.zeros((height, width))
    steps[:-1] += np.abs(np.diff(clean.astype(np.float64), axis=0))
    steps[:, :-1] += np.abs(np.diff(clean.astype(np.float64), axis=1))
    sums = np.pad(steps.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    # Borders of the film and burnt-in letters are the sharpest edges and say the least about anatomy.
    margin_y, margin_x = min(side // 2, (height - side) // 2), min(side // 2, (width - side) // 2)
    inner = boxes[margin_y : height - side + 1 - margin_y, margin_x : width - side + 1 - margin_x]
    top, left = np.unravel_index(int(np.argmax(inner)), inner.shape)
    return Square(top=int(top) + margin_y, left=int(left) + margin_x, side=side, height=height, width=width)


def _greys(panel: Panel, labels: Sequence[str]) -> list[tuple[str, float | None, FloatImage]]:
    """Caption, PSNR and pixels of each grey picture of a panel."""
    outputs = [(label, panel.psnr.get(label), panel.outputs[label]) for label in labels]
    return [("Noisy input", panel.noisy_psnr, panel.noisy), *outputs, ("Clean", None, panel.clean)]


def _tile(
    caption: str, psnr: float | None, pixels: npt.NDArray[np.uint8], square: Square, *, is_difference: bool = False
) -> Tile:
    return Tile(
        caption=caption,
        psnr=psnr,
        image=_data_uri(pixels),
        detail=_data_uri(square.cut(pixels)),
        is_difference=is_difference,
    )


def _grey(pixels: FloatImage) -> npt.NDArray[np.uint8]:
    levels: npt.NDArray[np.uint8] = np.rint(np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8)
    return levels


def _coloured(difference: FloatImage, limit: float) -> npt.NDArray[np.uint8]:
    """(H, W) -> (H, W, 3): -limit is blue, 0 white, +limit red."""
    scaled = (difference / limit + 1.0) / 2.0
    colours: npt.NDArray[np.uint8] = matplotlib.colormaps[_COLOURS](np.clip(scaled, 0.0, 1.0), bytes=True)[..., :3]
    return colours


def _data_uri(pixels: npt.NDArray[np.generic], *, largest: int = _LARGEST_SIDE) -> str:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) > largest:
        scale = largest / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
