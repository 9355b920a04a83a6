"""Attention U-Net: a U-Net whose skips pass through additive gates (Oktay et al., arXiv:1804.03999, 2018)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veilray.models.config import Architecture, Inputs
from veilray.models.layers import Block, Norm, Span, hull, pool_span, transposed_span, upsample_span
from veilray.models.unet import UNet


class AttentionUNet(UNet):
    """(N, C, H, W) -> (N, 1, H, W), any H and W; C is 1, or more where the noise's mean and std are inputs.

    The `unet` of the same size, in which each skip is multiplied by a gate before it is joined with what comes from
    the level below. The authors' deep supervision and their convolution after the gate are left out.
    32,081,925 parameters at the defaults. Raises UsageError for a size or variant that does not exist.
    """

    name: ClassVar[Architecture] = "attention_unet"

    def __init__(
        self,
        *,
        width: int = 64,
        depth: int = 5,
        norm: Norm = "batch",
        block: Block = "conv-relu-conv-norm-relu",
        residual: bool = False,
        inputs: Inputs = "image",
    ) -> None:
        super().__init__(width=width, depth=depth, norm=norm, block=block, residual=residual, inputs=inputs)
        channels = [width * 2**level for level in range(depth)]
        self.gates = nn.ModuleList(AdditiveGate(own, below) for own, below in pairwise(channels))

    def _skip(self, level: int, skip: Tensor, below: Tensor) -> Tensor:
        gated: Tensor = self.gates[level](skip, below)
        return gated

    def _asked(self, span: Span) -> tuple[Span, Span]:
        gate = upsample_span(span)
        return hull(span, pool_span(gate)), hull(transposed_span(span), gate)


class AdditiveGate(nn.Module):
    """A skip weighted pixel by pixel by what the level below makes of it (equations 1 and 2).

    With the skip x and the signal g from below, at half its sides, the gate is
    sigmoid(psi . relu(W_x x + W_g g + b_g) + b_psi), where W_x halves the sides, upsampled bilinearly to those of x.
    """

    def __init__(self, channels: int, channels_below: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.of_skip = nn.Conv2d(channels, inner, kernel_size=2, stride=2, bias=False)
        self.of_below = nn.Conv2d(channels_below, inner, kernel_size=1)
        self.score = nn.Conv2d(inner, 1, kernel_size=1)

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """(N, C, H, W) and (N, C', H / 2, W / 2) -> (N, C, H, W)."""
        gate = torch.sigmoid(self.score(F.relu(self.of_skip(skip) + self.of_below(below))))
        # Corners are not aligned: where it reads must not depend on the size of the whole image.
        return skip * F.interpolate(gate, scale_factor=2, mode="bilinear", align_corners=False).to(skip.dtype)
