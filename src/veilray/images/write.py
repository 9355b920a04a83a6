"""Writing images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from veilray.files import replacing
from veilray.images.radiograph import Levels


def write_png(path: Path, levels: Levels) -> None:
    """Write levels, (H, W) uint8 or uint16, as an 8- or 16-bit greyscale PNG, whole or not at all.

    An existing file is replaced. Raises TypeError for any other type: the caller rounds, by `to_levels`.
    """
    if levels.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)) or levels.ndim != 2:
        raise TypeError(f"levels must be (H, W) uint8 or uint16, not {levels.shape} {levels.dtype}")
    with replacing(path) as part:
        Image.fromarray(np.ascontiguousarray(levels)).save(part, format="PNG")
