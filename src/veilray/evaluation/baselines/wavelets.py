"""Soft thresholds on wavelet coefficients, averaged over shifts (cycle spinning), by scikit-image and PyWavelets."""

from __future__ import annotations

import numpy as np

from veilray.images.radiograph import FloatImage

WAVELET = "db4"
LEVELS = 5


def wavelet_smooth(noisy: FloatImage, *, std: float, factor: float, rule: str, shifts: int) -> FloatImage:
    """Coefficients shrunk for noise of `factor` times `std`: (H, W), float32, about [0, 1] -> the same, not clamped.

    `rule` chooses the thresholds: BayesShrink, one for each subband (Chang, Yu and Vetterli, IEEE Transactions on Image
    Processing 9(9), 2000), or VisuShrink, one for all (Donoho and Johnstone, Biometrika 81(3), 1994). The result is the
    average over all shifts by 0 to `shifts` pixels in both directions (Coifman and Donoho, Lecture Notes in Statistics
    103, 1995). All subbands of up to 5 levels are shrunk, since strong noise shows in coarse ones too. At the
    border the image is extended by reflection, so that no shift brings opposite sides together.
    """
    import pywt
    from skimage.restoration import cycle_spin, denoise_wavelet

    padded = np.pad(noisy, shifts, mode="symmetric")
    options = {
        "sigma": factor * std,
        "wavelet": WAVELET,
        "mode": "soft",
        "method": rule,
        "wavelet_levels": max(1, min(LEVELS, pywt.dwtn_max_level(padded.shape, WAVELET))),
        "rescale_sigma": False,
    }
    with np.errstate(divide="ignore", invalid="ignore"):  # a subband without any signal
        smooth = cycle_spin(padded, func=denoise_wavelet, max_shifts=shifts, func_kw=options, workers=1)
    height, width = noisy.shape
    cut: FloatImage = smooth[shifts : shifts + height, shifts : shifts + width].astype(np.float32)
    return cut
