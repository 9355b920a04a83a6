"""What every image metric demands of its arguments."""

from __future__ import annotations

import math

from torch import Tensor

from veilray.errors import UsageError


def check_pair(output: Tensor, target: Tensor, *, smallest: int) -> None:
    """UsageError unless both are (N, C, H, W), floating and alike, with H and W at least `smallest` pixels."""
    if output.ndim != 4:
        raise UsageError(f"a metric needs images of shape (N, C, H, W), not {tuple(output.shape)}")
    if output.shape != target.shape:
        raise UsageError(f"output {tuple(output.shape)} and target {tuple(target.shape)} must have the same shape")
    if output.dtype != target.dtype or output.device != target.device:
        raise UsageError(
            f"output ({output.dtype}, {output.device}) and target ({target.dtype}, {target.device}) "
            "must have the same dtype and be on the same device"
        )
    if not output.is_floating_point():
        raise UsageError(f"a metric needs floating-point images, not {output.dtype}; divide levels by their maximum")
    if min(output.shape[1:]) < 1 or min(output.shape[2:]) < smallest:
        raise UsageError(
            f"images of {output.shape[2]} x {output.shape[3]} pixels are too small for this metric: "
            f"it needs at least {smallest} x {smallest}"
        )


def check_data_range(data_range: float) -> None:
    """UsageError unless the range of the pixels is a positive, finite number."""
    if not (math.isfinite(data_range) and data_range > 0.0):
        raise UsageError(f"data_range = {data_range}: it must be a positive number, 1.0 for pixels in [0, 1]")
