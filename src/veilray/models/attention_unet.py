"""Attention U-Net: a U-Net whose skips pass through additive gates (Oktay et al., arXiv:1804.03999, 2018)."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veilray.models.config import Inputs, ModelConfig, checked_config
from veilray.models.layers import (
    Block,
    Norm,
    Span,
    Window,
    block_span,
    conv_block,
    hull,
    noisy_image,
    pad_to_multiple,
    pool_span,
    transposed_span,
    upsample_span,
)


class AttentionUNet(nn.Module):
    """(N, C, H, W) -> (N, 1, H, W), any H and W; C is 1, or more where the noise's mean and std are inputs.

    The `unet` of the same size, in which each skip is multiplied by a gate before it is joined with what comes from
    the level below. The authors' deep supervision and their convolution after the gate are left out.
    32,081,925 parameters at the defaults. Raises UsageError for a size or variant that does not exist.
    """

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
        super().__init__()
        self.config: ModelConfig = checked_config(
            name="attention_unet",
            width=width,
            depth=depth,
            norm=norm,
            block=block,
            residual=residual,
            inputs=inputs,
        )
        channels = [width * 2**level for level in range(depth)]
        self.encoder = nn.ModuleList(
            conv_block(before, after, norm=norm, block=block)
            for before, after in zip([self.config.channels_in, *channels], channels, strict=False)
        )
        self.gates = nn.ModuleList(AdditiveGate(own, below) for own, below in pairwise(channels))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, own, kernel_size=2, stride=2) for own, below in pairwise(channels)
        )
        self.decoder = nn.ModuleList(conv_block(2 * own, own, norm=norm, block=block) for own in channels[:-1])
        self.head = nn.Conv2d(width, 1, kernel_size=1)

    @property
    def stride(self) -> int:
        """Pixels of the input to one pixel of the lowest level; inputs are padded to its multiples."""
        return 1 << (self.config.depth - 1)

    @property
    def receptive_radius(self) -> int:
        """Distance in pixels, along an axis, beyond which no input pixel reaches an output pixel by convolution."""
        return max(_radius(pixel, self.config.depth) for pixel in range(self.stride))

    @property
    def has_global_statistics(self) -> bool:
        """Whether every output pixel depends on the whole image: group normalisation averages over all of it."""
        return self.config.norm == "group"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W): noisy image about [0, 1], then maps of the inputs -> (N, 1, H, W), not clamped."""
        height, width = x.shape[-2:]
        output = self._head(pad_to_multiple(x, self.stride))[..., :height, :width]
        return noisy_image(x) + output if self.config.residual else output

    def forward_tiles(self, x: Tensor, window: Window) -> Tensor:
        """What `forward` gives for tiles of an image; each tile's sides are multiples of the stride.

        The gates' upsampling reads neighbours wherever a tile lies, so this is `forward`.
        """
        return cast(Tensor, self(x))

    def _head(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.max_pool2d(x, 2))  # (N, width 2^level, H / 2^level, W / 2^level)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            gated = self.gates[level](skips[level], x)
            x = self.decoder[level](torch.cat([gated, self.up[level](x)], dim=1))
        return cast(Tensor, self.head(x))


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


def _radius(pixel: int, depth: int) -> int:
    """How far from output pixel `pixel` the input pixels lie that it depends on."""
    span = (pixel, pixel)
    skipped: list[Span] = []  # what the decoder asks of the encoder at each level
    for _ in range(depth - 1):
        span = block_span(span)
        gate = upsample_span(span)
        skipped.append(hull(span, pool_span(gate)))
        span = hull(transposed_span(span), gate)
    span = block_span(span)
    for skip in reversed(skipped):
        span = block_span(hull(skip, pool_span(span)))
    return max(pixel - span[0], span[1] - pixel)
