"""An objective on the Fourier transform (Cho, Ji, Hong, Jung and Ko, "MIMO-UNet", ICCV 2021, equation 8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from veilray.training.objectives.pixel import image_losses


class FrequencyL1(nn.Module):
    """|e| + weight |F(output) - F(target)| of each image: (N, 1, H, W) twice -> (N,).

    F is the two-dimensional Fourier transform, here orthonormal, so that both parts are of one size; its L1 norm is
    that of real and imaginary parts, which hold amplitude and phase. An L1 loss of pixels lets fine structure go that
    it cannot place; this part asks for it in every frequency by itself.
    """

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """(N, 1, H, W) twice -> (N,)."""
        return image_losses("frequency", output, target) + self.weight * frequency_distance(output, target)


def frequency_distance(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the half-plane of frequencies, which determines a real image, of |real| + |imaginary| of F(error).

    (N, 1, H, W) twice -> (N,).
    """
    error = output.to(torch.promote_types(output.dtype, torch.float32)) - target
    parts = torch.view_as_real(torch.fft.rfft2(error, norm="ortho"))
    return parts.abs().sum(dim=-1).mean(dim=(1, 2, 3))
