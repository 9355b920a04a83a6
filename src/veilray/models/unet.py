"""U-Net: an encoder and a decoder of mirrored levels, joined by skips."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veilray.models.config import Architecture, Inputs, ModelConfig, checked_config
from veilray.models.layers import (
    Block,
    DoublingConv,
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
)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with padded convolutions: (N, C, H, W) -> (N, 1, H, W), any H and W.

    C is 1, or more where the noise's mean and std are inputs.
    `depth` levels of width, 2 width, 4 width, ... channels; 2x2 max pooling down, 2x2 transposed convolutions up, skips
    concatenated as [skip, upsampled], a 1x1 head. With `residual` the output is the input plus what the head gives.
    31,036,481 parameters at the defaults. Raises UsageError for a size or variant that does not exist.
    """

    name: ClassVar[Architecture] = "unet"
    """Of the architecture, in its configuration."""

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
            name=self.name, width=width, depth=depth, norm=norm, block=block, residual=residual, inputs=inputs
        )
        channels = [width * 2**level for level in range(depth)]
        self.encoder = nn.ModuleList(
            conv_block(before, after, norm=norm, block=block)
            for before, after in zip([self.config.channels_in, *channels], channels, strict=False)
        )
        self.up = nn.ModuleList(DoublingConv(below, own) for own, below in pairwise(channels))
        self.decoder = nn.ModuleList(conv_block(2 * own, own, norm=norm, block=block) for own in channels[:-1])
        self.head: nn.Module = nn.Conv2d(width, 1, kernel_size=1)

    @property
    def stride(self) -> int:
        """Pixels of the input to one pixel of the lowest level; inputs are padded to its multiples."""
        return 1 << (self.config.depth - 1)

    @property
    def receptive_radius(self) -> int:
        """Distance in pixels, along an axis, beyond which no input pixel reaches an output pixel by convolution."""
        return max(self._radius(pixel) for pixel in range(self.stride))

    @property
    def has_global_statistics(self) -> bool:
        """Whether every output pixel depends on the whole image: group normalisation averages over all of it."""
        return self.config.norm == "group"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W): noisy image about [0, 1], then maps of the inputs -> (N, 1, H, W), not clamped."""
        height, width = x.shape[-2:]
        padded = pad_to_multiple(x, self.stride)
        output = self._head(padded)[..., :height, :width]
        return noisy_image(x) + output if self.config.residual else output

    def forward_tiles(self, x: Tensor, window: Window) -> Tensor:
        """What `forward` gives for tiles of an image; each tile's sides are multiples of the stride.

        Nothing depends on where a tile lies, so this is `forward`.
        """
        output: Tensor = self(x)
        return output

    def _head(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.max_pool2d(x, 2))  # (N, width 2^level, H / 2^level, W / 2^level)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = torch.cat([self._skip(level, skips[level], x), self.up[level](x)], dim=1)
            x = self.decoder[level](x)
        output: Tensor = self.head(x)
        return output

    def _skip(self, level: int, skip: Tensor, below: Tensor) -> Tensor:
        """What the decoder is given of a skip; `below` comes from the level under it, at half its sides."""
        return skip

    def _asked(self, span: Span) -> tuple[Span, Span]:
        """Of a skip and of the level below, what a decoder's block asks for where it reads `span`."""
        return span, transposed_span(span)

    def _radius(self, pixel: int) -> int:
        """How far from output pixel `pixel` the input pixels lie that it depends on."""
        span = (pixel, pixel)
        skipped: list[Span] = []  # what the decoder asks of the encoder at each level
        for _ in range(self.config.depth - 1):
            skip, span = self._asked(block_span(span))
            skipped.append(skip)
        span = block_span(span)
        for skip in reversed(skipped):
            span = block_span(hull(skip, pool_span(span)))
        return max(pixel - span[0], span[1] - pixel)
