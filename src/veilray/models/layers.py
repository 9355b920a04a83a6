"""What the networks are made of: blocks, padding, upsampling, and how far an output pixel sees."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "group"]
Block = Literal["conv-relu-conv-norm-relu", "conv-norm-relu-conv-norm-relu"]
Span = tuple[int, int]
"""First and last index along one axis that something depends on."""


def conv_block(channels_in: int, channels_out: int, *, norm: Norm, block: Block) -> nn.Sequential:
    """Two 3x3 convolutions with bias and zero padding, in the order that `block` names.

    (N, channels_in, H, W) -> (N, channels_out, H, W).
    """
    first, second = (
        nn.Conv2d(channels, channels_out, kernel_size=3, padding=1) for channels in (channels_in, channels_out)
    )
    match block:
        case "conv-relu-conv-norm-relu":
            layers = [first, nn.ReLU(inplace=True), second]
        case "conv-norm-relu-conv-norm-relu":
            layers = [first, norm_layer(channels_out, norm=norm), nn.ReLU(inplace=True), second]
    return nn.Sequential(*layers, norm_layer(channels_out, norm=norm), nn.ReLU(inplace=True))


class DoublingConv(nn.ConvTranspose2d):
    """Transposed 2x2 convolution with stride 2: (N, channels_in, H, W) -> (N, channels_out, 2H, 2W).

    No two of its windows overlap, so it is a 1x1 convolution to four times the channels whose outputs are laid out two
    by two. With a gradient, in bf16 on a processor, it is computed so: torch's own takes long over the gradient.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size=2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels_out, 2H, 2W)."""
        in_bf16 = x.dtype == torch.bfloat16 and x.device.type == "cpu"
        if not in_bf16 or output_size is not None or not torch.is_grad_enabled():
            return super().forward(x, output_size)
        assert self.bias is not None
        count, _, height, width = x.shape
        weight = self.weight.permute(2, 3, 1, 0).reshape(4 * self.out_channels, self.in_channels, 1, 1)
        quads = F.conv2d(x, weight, self.bias.repeat(4)).permute(0, 2, 3, 1)  # of each pixel: row, column, channel
        rows = quads.reshape(count, height, width, 2, 2 * self.out_channels).transpose(2, 3)
        return rows.reshape(count, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)


def norm_layer(channels: int, *, norm: Norm) -> nn.Module:
    """Normalisation over the batch, or over groups of channels of each image.

    Eight groups wherever 8 divides the channels, so that a group holds at least two channels from width 16 on: with one
    channel a group the mean of every feature map would be lost. Elsewhere the greatest common divisor with 8.
    """
    match norm:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(math.gcd(8, channels), channels)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extend (N, C, H, W) at the bottom and on the right until both sides are multiples of `multiple`.

    By reflection; by repeating the last row or column where the image is too small to be reflected.
    """
    bottom, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    if bottom:
        x = F.pad(x, (0, 0, 0, bottom), mode="reflect" if bottom < x.shape[-2] else "replicate")
    if right:
        x = F.pad(x, (0, right, 0, 0), mode="reflect" if right < x.shape[-1] else "replicate")
    return x


def with_noise_maps(images: Tensor, known: Tensor) -> Tensor:
    """(N, 1, H, W) and (N, K) -> (N, 1 + K, H, W): after each image, a constant map of each of its K numbers."""
    if not known.shape[1]:
        return images
    maps = known.to(images)[:, :, None, None].expand(-1, -1, *images.shape[-2:])
    return torch.cat([images, maps], dim=1)


def noisy_image(x: Tensor) -> Tensor:
    """(N, C, H, W), what a network is given -> (N, 1, H, W): the image, less its noise's mean where that is given."""
    return x[:, :1] - x[:, 1:2] if x.shape[1] > 1 else x


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which what is computed on x's device keeps the arithmetic of its tensors."""
    if x.device.type == "meta":  # knows no autocast
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel: (N, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        channels_last = x.permute(0, 2, 3, 1)  # a view without copying where x lies channels last
        normed: Tensor = F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, eps=1e-6)
        return normed.permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Where the tiles of a batch lie in the image they were cut from, in pixels; all multiples of the stride."""

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    height: int
    """Of the whole image."""
    width: int
    """Of the whole image."""


def upsample(x: Tensor, *, window: Window | None = None, level: int = 0) -> Tensor:
    """Bilinear upsampling by two with corners aligned: (N, C, H, W) -> (N, C, 2H, 2W).

    Aligned corners make the sampling positions depend on the size of the whole image: output row q reads row
    q (H - 1) / (2H - 1). Where x holds tiles, `window` says where they lie and `level` how often x has been halved, and
    each tile is sampled at the positions it has in the whole.
    """
    if window is None:
        # Autocast would leave float32 here, and the concatenation that follows would double in size.
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True).to(x.dtype)
    halvings = 2**level
    tiles = []
    for index, (top, left) in enumerate(zip(window.tops, window.lefts, strict=True)):
        tile = _upsample_axis(x[index : index + 1], 2, top // halvings, window.height // halvings)
        tiles.append(_upsample_axis(tile, 3, left // halvings, window.width // halvings))
    return torch.cat(tiles)


def _upsample_axis(x: Tensor, axis: int, start: int, whole: int) -> Tensor:
    """Upsample one axis of a tile whose first index is `start` in a whole of size `whole`."""
    size = x.shape[axis]
    # In float32, as interpolate computes it: in large images its rounding shows.
    scale = torch.tensor(whole - 1.0, device=x.device) / (2.0 * whole - 1.0)
    positions = scale * torch.arange(2 * start, 2 * (start + size), device=x.device, dtype=torch.float32)
    low = positions.floor()
    weight = (positions - low).to(x.dtype).view([-1 if dim == axis else 1 for dim in range(4)])
    # Only a tile's halo can ask for what lies outside the tile.
    first = (low.long() - start).clamp(0, size - 1)
    second = (first + 1).clamp(max=size - 1)
    return torch.lerp(x.index_select(axis, first), x.index_select(axis, second), weight)


def block_span(span: Span) -> Span:
    """What the outputs of a block depend on in its input."""
    return wider(span, 2)


def wider(span: Span, reach: int) -> Span:
    """A span with `reach` more indices at either end."""
    return span[0] - reach, span[1] + reach


def pool_span(span: Span) -> Span:
    """What the outputs of a 2x2 max pooling depend on in its input."""
    return 2 * span[0], 2 * span[1] + 1


def transposed_span(span: Span) -> Span:
    """What the outputs of a 2x2 transposed convolution with stride 2 depend on in its input."""
    return span[0] // 2, span[1] // 2


def upsample_span(span: Span) -> Span:
    """What the outputs of `upsample` depend on in its input, for any image size.

    Output q reads at q (H - 1) / (2H - 1), which lies in [q/2 - 1/2, q/2].
    """
    return (span[0] - 1) // 2, (span[1] + 1) // 2


def hull(*spans: Span) -> Span:
    """The smallest span that holds all of them."""
    return min(first for first, _ in spans), max(last for _, last in spans)
