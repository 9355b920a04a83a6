"""A U-shaped network of gated, activation-free blocks behind a pixel-unshuffle, after NAFNet (Chen et al., ECCV 2022).

What is left out is the block's channel attention: its average over the whole image would make every output pixel
depend on all others, so that tiles could not equal the whole, and crops in training would differ from images in use.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veilray.models.config import Fold, Inputs, ModelConfig, checked_config
from veilray.models.layers import ChannelNorm, Span, Window, hull, noisy_image, pad_to_multiple, wider


class NAFNet(nn.Module):
    """(N, C, H, W) -> (N, 1, H, W), any H and W; C is 1, or more where the noise's mean and std are inputs.

    The image is folded into 1 / `fold` of its sides and `fold`^2 times the channels; `depth` levels of width, 2 width,
    4 width, ... channels follow, with one block at the first level and two at the others on the way down and up, joined
    by 2x2 convolutions of stride 2 down, 1x1 convolutions and pixel-shuffles up, and added skips.
    1,682,148 parameters at width 32, depth 4, fold 2 and two inputs. Raises UsageError for a size that does not exist.
    """

    def __init__(
        self, *, width: int = 32, depth: int = 4, residual: bool = True, inputs: Inputs = "image", fold: Fold = 2
    ) -> None:
        super().__init__()
        self.config: ModelConfig = checked_config(
            name="nafnet", width=width, depth=depth, residual=residual, inputs=inputs, fold=fold
        )
        channels = [width * 2**level for level in range(depth)]
        self.stem = nn.Conv2d(fold**2 * self.config.channels_in, width, kernel_size=3, padding=1)
        self.encoder = nn.ModuleList(_blocks(own, level) for level, own in enumerate(channels))
        self.down = nn.ModuleList(nn.Conv2d(own, below, kernel_size=2, stride=2) for own, below in pairwise(channels))
        self.up = nn.ModuleList(nn.Conv2d(below, 4 * own, kernel_size=1) for own, below in pairwise(channels))
        self.decoder = nn.ModuleList(_blocks(own, level) for level, own in enumerate(channels[:-1]))
        self.head = nn.Conv2d(width, fold**2, kernel_size=3, padding=1)

    @property
    def stride(self) -> int:
        """Pixels of the input to one pixel of the lowest level; inputs are padded to its multiples."""
        return self.config.fold << (self.config.depth - 1)

    @property
    def receptive_radius(self) -> int:
        """Distance in pixels, along an axis, beyond which no input pixel reaches an output pixel."""
        return max(_radius(pixel, self.config.depth, self.config.fold) for pixel in range(self.stride))

    @property
    def has_global_statistics(self) -> bool:
        """False: normalisation is over the channels of one place, and nothing averages over the image."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W): noisy image about [0, 1], then maps of the inputs -> (N, 1, H, W), not clamped."""
        height, width = x.shape[-2:]
        output = self._folded(F.pixel_unshuffle(pad_to_multiple(x, self.stride), self.config.fold))[
            ..., :height, :width
        ]
        if not self.config.residual:
            return output
        return noisy_image(x) + output

    def forward_tiles(self, x: Tensor, window: Window) -> Tensor:
        """What `forward` gives for tiles of an image, which is `forward`: nothing depends on where a tile lies."""
        output: Tensor = self(x)
        return output

    def _folded(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (N, width, H / fold, W / fold)
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.encoder):
            if level:
                x = self.down[level - 1](x)
            x = blocks(x)  # (N, width 2^level, H / (fold 2^level), W / (fold 2^level))
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = F.pixel_shuffle(self.up[level](x), 2) + skips[level]
            x = self.decoder[level](x)
        return F.pixel_shuffle(self.head(x), self.config.fold)


class GatedBlock(nn.Module):
    """Two residual branches: 1x1, depthwise 3x3, gate, 1x1; and 1x1, gate, 1x1. (N, C, H, W) -> the same.

    A gate multiplies one half of the channels by the other. Both branches are scaled by learnt factors that begin at
    zero, so that a network begins as the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, kernel_size=1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, kernel_size=3, padding=1, groups=2 * channels)
        self.project = nn.Conv2d(channels, channels, kernel_size=1)
        self.widen = nn.Conv2d(channels, 2 * channels, kernel_size=1)
        self.narrow = nn.Conv2d(channels, channels, kernel_size=1)
        self.scale1 = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale2 = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        x = x + self.scale1 * self.project(_gate(self.depthwise(self.expand(self.norm1(x)))))
        output: Tensor = x + self.scale2 * self.narrow(_gate(self.widen(self.norm2(x))))
        return output


def _blocks(channels: int, level: int) -> nn.Sequential:
    return nn.Sequential(*(GatedBlock(channels) for _ in range(_count(level))))


def _count(level: int) -> int:
    """Blocks of a level on the way down, and again on the way up; each reaches one pixel farther."""
    return 1 if level == 0 else 2


def _gate(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return first * second


def _radius(pixel: int, depth: int, fold: int) -> int:
    """How far from output pixel `pixel` the input pixels lie that it depends on."""
    span: Span = wider((pixel // fold, pixel // fold), 1)  # of the folded image, through the head
    skipped: list[Span] = []
    for level in range(depth - 1):
        span = wider(span, _count(level))
        skipped.append(span)
        span = span[0] // 2, span[1] // 2
    for level in reversed(range(depth)):
        if level < depth - 1:
            span = hull(skipped[level], (2 * span[0], 2 * span[1] + 1))
        span = wider(span, _count(level))
    span = wider(span, 1)  # stem
    first, last = fold * span[0], fold * (span[1] + 1) - 1
    return max(pixel - first, last - pixel)
