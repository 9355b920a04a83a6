"""A radiograph as an array, and the affine map between stored values and [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from veilray.images.acquisition import Acquisition

FloatImage = npt.NDArray[np.float32]
Levels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
StoredImage = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class IntensityMap:
    """How stored values became pixels in [0, 1]: (stored - low) / (high - low), or one minus that where `inverted`.

    `low` and `high` are the ends of the range that the format declares (BitsStored and PixelRepresentation in DICOM),
    never an image's own minimum and maximum, so a noise level means the same in every image and the way back is exact.
    """

    low: int
    high: int
    inverted: bool = False
    slope: float = 1.0
    """Rescale slope (0028,1053): output units = slope * stored + intercept."""
    intercept: float = 0.0
    """Rescale intercept (0028,1052)."""
    photometric: str = ""
    """Photometric interpretation (0028,0004), or Pillow's mode for PNG and JPEG."""
    voi: str = ""
    """Window or VOI LUT (0028,1050), (0028,1051), (0028,1056), (0028,3010): recorded, never applied."""
    padding: tuple[int, int] | None = None
    """Stored values (first, last) declared as padding (0028,0120), (0028,0121); those pixels are 0."""
    padded_pixels: int = 0
    """How many pixels were padding."""
    overlays: int = 0
    """Number of overlay planes (60xx): recorded, never drawn."""


@dataclass(frozen=True, kw_only=True)
class Radiograph:
    """One radiograph: pixels, identity and the way back to its stored values."""

    pixels: FloatImage
    """(H, W), float32, [0, 1]; 0 is black, 1 is white as displayed."""
    bit_depth: int
    """Significant bits of a stored value."""
    image_id: str
    """Name of the image: the file's stem, or the SOP Instance UID (0008,0018)."""
    patient_id: str | None
    """Patient ID (0010,0020), or the patient's number in an NIH name; None where unknown."""
    source: str
    """Name of the file, as `archive.zip:member.png` inside an archive."""
    format: Literal["png", "jpeg", "dicom"]
    intensity: IntensityMap
    modality: str = ""
    """Modality (0008,0060); empty for PNG and JPEG."""
    view: str = ""
    """View position (0018,5101): AP, PA, LL, ...; empty where unknown."""
    colour: float = 0.0
    """How colourful the file is: mean difference between a pixel's strongest and weakest channel, of the full range."""
    acquisition: Acquisition = field(default_factory=Acquisition)
    """Patient and exposure; empty for PNG and JPEG."""


def map_stored(stored: StoredImage, intensity: IntensityMap) -> FloatImage:
    """Stored values as pixels in [0, 1], by the range and the polarity of `intensity`; padding is not looked at.

    `stored` is an integer array of any shape with values in [low, high]; the result is float32 of the same shape.
    Raises ValueError where a value lies outside that range, which would otherwise wrap round without a sign.
    """
    span = intensity.high - intensity.low
    if stored.size and (stored.min() < intensity.low or stored.max() > intensity.high):
        raise ValueError(f"stored values leave [{intensity.low}, {intensity.high}]")
    # At most 65,536 different values exist: a table gives each its correctly rounded float32 once.
    steps = np.arange(span + 1)
    table = ((span - steps if intensity.inverted else steps) / span).astype(np.float32)
    pixels: FloatImage = table[stored.astype(np.int32) - intensity.low]
    return pixels


def restore_stored(pixels: FloatImage, intensity: IntensityMap) -> npt.NDArray[np.int32]:
    """The way back: pixels in [0, 1] as the nearest stored values, int32, same shape; values outside are clipped.

    `restore_stored(map_stored(stored, m), m)` is `stored` exactly for every range of up to 16 bits. Pixels that were
    padding are black like any other black pixel and come back as the stored value of black.
    """
    span = intensity.high - intensity.low
    steps = np.rint(np.clip(pixels, 0.0, 1.0).astype(np.float64) * span).astype(np.int32)
    stored: npt.NDArray[np.int32] = (span - steps if intensity.inverted else steps) + np.int32(intensity.low)
    return stored


def levels_dtype(bit_depth: int) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    """uint8 for at most 8 significant bits, uint16 for more."""
    return np.dtype(np.uint8) if bit_depth <= 8 else np.dtype(np.uint16)


def to_levels(pixels: FloatImage, dtype: npt.DTypeLike) -> Levels:
    """Round pixels in [0, 1] to the full range of uint8 or uint16; values outside are clipped. Same shape."""
    top = np.iinfo(np.dtype(dtype)).max
    scaled = np.clip(pixels, 0.0, 1.0).astype(np.float64) * top
    levels: Levels = np.rint(scaled).astype(dtype)
    return levels


def to_pixels(levels: Levels) -> FloatImage:
    """Levels of uint8 or uint16 as float32 in [0, 1]. Same shape."""
    return (levels / np.float64(np.iinfo(levels.dtype).max)).astype(np.float32)
