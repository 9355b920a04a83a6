"""Non-local means (Buades, Coll and Morel, CVPR 2005), by scikit-image."""

from __future__ import annotations

import numpy as np

from veilray.images.radiograph import FloatImage


def nlm_smooth(noisy: FloatImage, *, std: float, factor: float, patch: int, distance: int) -> FloatImage:
    """Average of pixels whose patches look alike: (H, W), float32, about [0, 1] -> the same, not clamped.

    The decay of the weights is `factor` times `std`; `patch` is a patch's side and `distance` how far patches are
    looked for, in pixels. Distances between patches are taken less what noise of `std` adds to them.
    """
    from skimage.restoration import denoise_nl_means

    smooth: FloatImage = denoise_nl_means(
        noisy, patch_size=patch, patch_distance=distance, h=factor * std, sigma=std, fast_mode=True
    ).astype(np.float32)
    return smooth
