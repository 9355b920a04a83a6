"""BM3D: block matching and collaborative filtering (Dabov et al., IEEE Transactions on Image Processing 16(8), 2007).

The implementation is its authors' own, the package `bm3d`, whose licence allows non-commercial use only.
"""

from __future__ import annotations

import numpy as np

from veilray.images.radiograph import FloatImage

LICENCE = (
    "BM3D is the package bm3d of Tampere University: its licence allows non-commercial use only, and asks that results "
    "made with it be published with a reference to its authors"
)
SMALLEST = 16


def bm3d_smooth(noisy: FloatImage, *, std: float, factor: float, profile: str) -> FloatImage:
    """Both stages of BM3D for noise of `factor` times `std`: (H, W), float32, about [0, 1] -> the same, not clamped.

    `profile` is one of the package's: `np`, the normal one, or `vn`, the one for very noisy images. Images of fewer
    than 16 pixels a side are extended by reflection, since blocks would not fit into them.
    """
    import bm3d

    height, width = noisy.shape
    missing = [(0, max(0, SMALLEST - side)) for side in (height, width)]
    padded = np.pad(noisy, missing, mode="symmetric") if np.any(missing) else noisy
    smooth: FloatImage = bm3d.bm3d(padded, sigma_psd=factor * std, profile=profile).astype(np.float32)
    return smooth[:height, :width]
