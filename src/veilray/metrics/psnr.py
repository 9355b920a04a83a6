"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from veilray.metrics.check import check_data_range, check_pair


def psnr(output: Tensor, target: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB: 10 log10(data_range^2 / mean squared error).

    `output` and `target` are (N, C, H, W), of one floating dtype, on one device; nothing is clamped, so clamp the output
    first where only [0, data_range] can be shown. Returns (N,): float64 on devices that have it and float32 elsewhere.
    An output that equals its target exactly scores infinity. Raises UsageError for other shapes or dtypes.
    """
    check_pair(output, target, smallest=1)
    check_data_range(data_range)
    # The differences are exact enough in their own dtype; it is the sum over millions of pixels that needs float64.
    squared = (output - target).flatten(1).square()
    error = squared.mean(dim=1, dtype=squared.dtype if squared.device.type == "mps" else torch.float64)
    return 10.0 * torch.log10(data_range**2 / error)
