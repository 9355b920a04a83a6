"""Layers that average over the image, in a tiled one: by statistics of the whole image.

A group normalisation that sees one tile uses that tile's mean and variance, so that each tile comes out a little
brighter or darker than its neighbours. Here the sums of all tiles are pooled: passes over the tiles collect them, and
the last pass normalises every tile with the same numbers, those of the whole image. The statistics of a layer depend on
what the layers before it did, so each pass makes at least one more layer exact; the passes end when nothing changes.
Attention between channels is made of sums over pixels too, and goes the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from veilray.inference.tiles import Tile
from veilray.models.restormer import ChannelAttention


class Pool:
    """What the layers of one network that average over the image share while it is being tiled."""

    def __init__(self) -> None:
        self.mode: Literal["own", "collect", "apply"] = "own"
        self._tiles: Sequence[Tile] = ()

    def at(self, tiles: Sequence[Tile]) -> None:
        """Say which tiles the next batch holds."""
        self._tiles = tiles

    def kept(self, x: Tensor) -> list[Tensor]:
        """Of each tile in (N, C, h, w), the part (1, C, h', w') it answers for: halos would be counted twice."""
        parts = []
        for image, tile in zip(x, self._tiles, strict=True):
            halvings = (tile.rows.stop - tile.rows.start) // x.shape[-2]
            rows, columns = (
                slice(kept.start // halvings, kept.stop // halvings) for kept in (tile.rows.kept, tile.columns.kept)
            )
            parts.append(image[None, :, rows, columns])
        return parts


class PooledGroupNorm(nn.Module):
    """nn.GroupNorm that can collect its statistics over the tiles of an image and apply them: (N, C, H, W) -> same."""

    def __init__(self, norm: nn.GroupNorm, pool: Pool) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        self.pool = pool
        self.pixels = 0
        self.sums: Tensor | None = None
        self.moments: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same, normalised by the statistics that the pool's mode asks for."""
        if self.pool.mode == "collect":
            self._collect(x)
        if self.pool.mode == "own" or self.moments is None:
            mean, variance = self._moments_of(x)
        else:
            mean, variance = self.moments
        channels = self.weight.numel() // self.groups
        mean, variance = (v.float().to(x.device).repeat_interleave(channels, dim=-1) for v in (mean, variance))
        scale = self.weight.float() * torch.rsqrt(variance + self.eps)
        shift = self.bias.float() - mean * scale
        # Multiplied in float32, because x scale and shift nearly cancel where the mean is large.
        return torch.addcmul(_on_pixels(shift), x.float(), _on_pixels(scale)).to(x.dtype)

    def _moments_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each group of (N, C, H, W), both (N, groups), float32.

        F.group_norm takes them from sums of squares in channels-last memory, which loses two digits of its output.
        """
        grouped = torch.unflatten(x.float(), 1, (self.groups, -1))
        variance, mean = torch.var_mean(grouped, dim=(2, 3, 4), correction=0)
        return mean, variance

    def settle(self) -> float:
        """Turn what was collected into the moments. Returns by how much they changed, in units of the deviation."""
        if self.sums is None:
            return 0.0
        mean = self.sums[0] / self.pixels
        variance = (self.sums[1] / self.pixels - mean.square()).clamp(min=0.0)
        self.sums, self.pixels = None, 0
        before, self.moments = self.moments, (mean, variance)
        if before is None:
            return float("inf")
        unit = variance + self.eps
        changes = (mean - before[0]).abs() / unit.sqrt(), (variance - before[1]).abs() / unit
        return max(change.max().item() for change in changes)

    def forget(self) -> None:
        """Drop the moments of an image."""
        self.sums, self.moments, self.pixels = None, None, 0

    def _collect(self, x: Tensor) -> None:
        for part in self.pool.kept(x):
            mean, variance = (value[0].cpu().double() for value in self._moments_of(part))  # MPS has no float64
            count = part.numel() // self.groups
            sums = torch.stack([mean, variance + mean.square()]) * count
            self.sums = sums if self.sums is None else self.sums + sums
            self.pixels += count


class PooledAttention(nn.Module):
    """A ChannelAttention that can collect its sums over the tiles of an image and apply them: (N, C, H, W) -> same."""

    def __init__(self, attention: ChannelAttention, pool: Pool) -> None:
        super().__init__()
        self.attention = attention
        self.pool = pool
        self.collected: Tensor | None = None
        self.sums: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same, with the attention that the pool's mode asks for."""
        queries_keys, values = self.attention.parts(x)
        if self.pool.mode == "collect":
            for part in self.pool.kept(queries_keys):
                sums = self.attention.sums(part).cpu().double()  # MPS has no float64
                self.collected = sums if self.collected is None else self.collected + sums
        if self.pool.mode == "own" or self.sums is None:
            return self.attention.mixed(values, self.attention.sums(queries_keys))
        return self.attention.mixed(values, self.sums.to(x.device))

    def settle(self) -> float:
        """Turn what was collected into the sums. Returns by how much a cosine changed."""
        if self.collected is None:
            return 0.0
        before, self.sums = self.sums, self.collected.float()
        self.collected = None
        if before is None:
            return float("inf")
        return (self.attention.cosines(self.sums) - self.attention.cosines(before)).abs().max().item()

    def forget(self) -> None:
        """Drop the sums of an image."""
        self.collected, self.sums = None, None


def _on_pixels(values: Tensor) -> Tensor:
    """(C,) or (N, C) -> (1 or N, C, 1, 1)."""
    return values.reshape(-1, values.shape[-1], 1, 1)


def pool_statistics(network: nn.Module) -> tuple[Pool, list[PooledGroupNorm | PooledAttention]]:
    """Replace every nn.GroupNorm and ChannelAttention in `network` by a pooled one with the same parameters."""
    pool = Pool()
    pooled: list[PooledGroupNorm | PooledAttention] = []
    for module in list(network.modules()):
        for name, child in module.named_children():
            match child:
                case nn.GroupNorm():
                    pooled.append(PooledGroupNorm(child, pool))
                case ChannelAttention():
                    pooled.append(PooledAttention(child, pool))
                case _:
                    continue
            setattr(module, name, pooled[-1])
    return pool, pooled
