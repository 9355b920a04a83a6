"""A small Restormer: attention between channels, behind a pixel-unshuffle (Zamir et al., CVPR 2022).

The attention of a block is one small matrix of cosines between channels, taken over all pixels of the image it is
given. So every output pixel depends on the whole image: `has_global_statistics`. The matrix is made of sums over
pixels, which `inference.pooling` adds up over tiles. A network trained on crops has seen the cosines of crops alone,
which differ from those of whole images (Chu et al., ECCV 2022); train it on whole images where that matters.

What is smaller than in the paper: the image is folded into half its sides first, a level has one or two blocks, and
there is no refinement stage after the last one. The normalisations have a bias, as in one of the paper's two variants.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veilray.models.config import Inputs, ModelConfig, checked_config
from veilray.models.layers import ChannelNorm, Span, Window, hull, noisy_image, pad_to_multiple, wider, without_autocast

EXPANSION = 2.66
"""Channels inside a feed-forward branch, as a multiple of those outside (section 4)."""


class Restormer(nn.Module):
    """(N, C, H, W) -> (N, 1, H, W), any H and W; C is 1, or more where the noise's mean and std are inputs.

    `depth` levels of width, 2 width, 4 width, ... channels and 1, 2, 4, ... heads, with one block at the first level
    and two at the others on the way down and up; 3x3 convolutions with pixel-unshuffle down and pixel-shuffle up, skips
    concatenated and, below the first level, reduced by 1x1 convolutions. `width` is even.
    2,500,302 parameters at the defaults. Raises UsageError for a size that does not exist.
    """

    def __init__(self, *, width: int = 24, depth: int = 4, residual: bool = True, inputs: Inputs = "image") -> None:
        super().__init__()
        self.config: ModelConfig = checked_config(
            name="restormer", width=width, depth=depth, residual=residual, inputs=inputs
        )
        channels = [width * 2**level for level in range(depth)]
        joined = [2 * width, *channels[1:-1]]  # the first level keeps all that is concatenated, as in the paper
        self.stem = nn.Conv2d(4 * self.config.channels_in, width, kernel_size=3, padding=1, bias=False)
        self.encoder = nn.ModuleList(_blocks(own, level) for level, own in enumerate(channels))
        self.down = nn.ModuleList(  # before a pixel-unshuffle, which makes four channels of one
            nn.Conv2d(own, below // 4, kernel_size=3, padding=1, bias=False) for own, below in pairwise(channels)
        )
        self.up = nn.ModuleList(  # before a pixel-shuffle
            nn.Conv2d(below, 4 * own, kernel_size=3, padding=1, bias=False) for own, below in pairwise(channels)
        )
        self.join = nn.ModuleList(nn.Conv2d(2 * own, own, kernel_size=1, bias=False) for own in channels[1:-1])
        self.decoder = nn.ModuleList(_blocks(own, level) for level, own in enumerate(joined))
        self.head = nn.Conv2d(2 * width, 4, kernel_size=3, padding=1, bias=False)

    @property
    def stride(self) -> int:
        """Pixels of the input to one pixel of the lowest level; inputs are padded to its multiples."""
        return 1 << self.config.depth

    @property
    def receptive_radius(self) -> int:
        """Distance in pixels, along an axis, beyond which no input pixel reaches an output pixel by convolution."""
        return max(_radius(pixel, self.config.depth) for pixel in range(self.stride))

    @property
    def has_global_statistics(self) -> bool:
        """True: the attention of every block is taken over the whole image."""
        return True

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W): noisy image about [0, 1], then maps of the inputs -> (N, 1, H, W), not clamped."""
        height, width = x.shape[-2:]
        output = self._folded(F.pixel_unshuffle(pad_to_multiple(x, self.stride), 2))[..., :height, :width]
        return noisy_image(x) + output if self.config.residual else output

    def forward_tiles(self, x: Tensor, window: Window) -> Tensor:
        """`forward`, which is that of the whole image only with the whole image's attention: `inference.pooling`."""
        return cast(Tensor, self(x))

    def _folded(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (N, width, H / 2, W / 2)
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.encoder):
            if level:
                x = F.pixel_unshuffle(self.down[level - 1](x), 2)
            x = blocks(x)  # (N, width 2^level, H / 2^(level + 1), W / 2^(level + 1))
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = torch.cat([F.pixel_shuffle(self.up[level](x), 2), skips[level]], dim=1)
            x = self.decoder[level](self.join[level - 1](x) if level else x)
        return F.pixel_shuffle(self.head(x), 2)


class ChannelAttention(nn.Module):
    """Multi-head attention between channels (equation 1): (N, C, H, W) -> the same.

    With queries q, keys k and values v of each head, (C / heads, H W), the output is softmax(t q k^T) v, the rows of q
    and k being of unit length and t learnt for each head.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.expand = nn.Conv2d(channels, 3 * channels, kernel_size=1, bias=False)
        self.depthwise = nn.Conv2d(
            3 * channels, 3 * channels, kernel_size=3, padding=1, groups=3 * channels, bias=False
        )
        self.project = nn.Conv2d(channels, channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        queries_keys, values = self.parts(x)
        return self.mixed(values, self.sums(queries_keys))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (N, 2 C, H, W), and values (N, C, H, W)."""
        channels = x.shape[1]
        queries_keys, values = self.depthwise(self.expand(x)).split([2 * channels, channels], dim=1)
        return queries_keys, values

    def sums(self, queries_keys: Tensor) -> Tensor:
        """(N, 2 C, H, W) -> (N, heads, D, D + 2), float32 at least, D = C / heads: sums over pixels that add up.

        Of each query with each key; then, in two columns, of the squares of the queries and of the keys.
        """
        with without_autocast(queries_keys):  # sums over thousands of pixels
            wide = queries_keys.to(torch.promote_types(queries_keys.dtype, torch.float32))
            queries, keys = torch.unflatten(wide, 1, (2, self.heads, -1)).flatten(-2).unbind(1)  # (N, heads, D, H W)
            products = queries @ keys.transpose(-1, -2)
            return torch.cat([products, _energy(queries), _energy(keys)], dim=-1)

    def mixed(self, values: Tensor, sums: Tensor) -> Tensor:
        """(N, C, H, W), with `sums` of these images or of one for all -> (N, C, H, W)."""
        attention = self.cosines(sums).mul(self.temperature).softmax(dim=-1).to(values.dtype)
        heads = torch.unflatten(values, 1, (self.heads, -1)).flatten(-2)
        return cast(Tensor, self.project((attention @ heads).view_as(values)))

    @staticmethod
    def cosines(sums: Tensor) -> Tensor:
        """Between each query and each key, (N, heads, D, D): what `sums` gives, by lengths."""
        products, lengths = sums[..., :-2], sums[..., -2:].clamp(min=1e-24).sqrt()
        return products / (lengths[..., :1] * lengths[..., 1:].transpose(-1, -2))


class TransformerBlock(nn.Module):
    """Two residual branches, channel attention and a gated depthwise feed-forward: (N, C, H, W) -> the same.

    The second is project(gelu(a) b), a and b being the halves of a 1x1 and a depthwise 3x3 convolution (equation 2).
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        inner = int(EXPANSION * channels)
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.attention = ChannelAttention(channels, heads)
        self.expand = nn.Conv2d(channels, 2 * inner, kernel_size=1, bias=False)
        self.depthwise = nn.Conv2d(2 * inner, 2 * inner, kernel_size=3, padding=1, groups=2 * inner, bias=False)
        self.project = nn.Conv2d(inner, channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        x = x + self.attention(self.norm1(x))
        gate, passed = self.depthwise(self.expand(self.norm2(x))).chunk(2, dim=1)
        return x + cast(Tensor, self.project(F.gelu(gate) * passed))


def _energy(maps: Tensor) -> Tensor:
    return maps.square().sum(dim=-1, keepdim=True)


def _blocks(channels: int, level: int) -> nn.Sequential:
    return nn.Sequential(*(TransformerBlock(channels, 2**level) for _ in range(_count(level))))


def _count(level: int) -> int:
    """Blocks of a level on the way down, and again on the way up; each reaches two pixels farther."""
    return 1 if level == 0 else 2


def _radius(pixel: int, depth: int) -> int:
    """How far from output pixel `pixel` the input pixels lie that it depends on, attention left out."""
    span: Span = wider((pixel // 2, pixel // 2), 1)  # of the folded image, through the head
    skipped: list[Span] = []
    for level in range(depth - 1):
        span = wider(span, 2 * _count(level))
        skipped.append(span)
        span = wider((span[0] // 2, span[1] // 2), 1)
    for level in reversed(range(depth)):
        if level < depth - 1:
            span = wider((2 * span[0], 2 * span[1] + 1), 1)
            span = hull(skipped[level], span)
        span = wider(span, 2 * _count(level))
    span = wider(span, 1)  # stem
    first, last = 2 * span[0], 2 * span[1] + 1
    return max(pixel - first, last - pixel)
