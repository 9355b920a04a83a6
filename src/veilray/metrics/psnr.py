"""Peak signal-to-noise ratio."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from veilray.metrics.check import check_data_range, check_pair


def psnr(output: Tensor, target: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB: 10 log10(data_range^2 / mean squared error).

    `output` and `target` are (N, C, H, W), of one floating dtype, on one device. Nothing is clamped: clamp the output
    first where only [0, data_range] can be shown. Returns (N,): float64, or float32 on devices without float64.
    An output that equals its target exactly scores infinity. Raises UsageError for other shapes or dtypes.
    """
    check_pair(output, target, smallest=1)
    check_data_range(data_range)
    single = torch.promote_types(output.dtype, torch.float32)
    squared = (output.to(single) - target.to(single)).square()
    # Rows are summed in float32, which is fast, and the rows' sums in float64, which is exact; MPS has no float64.
    rows = squared.sum(dim=-1).to(single if squared.device.type == "mps" else torch.float64)
    error = rows.sum(dim=(1, 2)) / math.prod(output.shape[1:])
    return 10.0 * torch.log10(data_range**2 / error)
