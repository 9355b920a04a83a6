"""Total variation (Rudin, Osher and Fatemi, Physica D 60, 1992) by Chambolle's dual algorithm, by scikit-image."""

from __future__ import annotations

import numpy as np

from veilray.images.radiograph import FloatImage


def tv_smooth(noisy: FloatImage, *, std: float, factor: float, eps: float) -> FloatImage:
    """The image of least total variation plus distance: (H, W), float32, about [0, 1] -> the same, not clamped.

    The weight of the total variation is `factor` times `std`. Up to 200 iterations of Chambolle, Journal of
    Mathematical Imaging and Vision 20, 2004, until the cost falls by less than `eps` of what it was at first.
    """
    from skimage.restoration import denoise_tv_chambolle

    smooth: FloatImage = denoise_tv_chambolle(  # type: ignore[no-untyped-call]
        noisy, weight=factor * std, eps=eps
    ).astype(np.float32)
    return smooth
