"""Group normalisation of a tiled image by statistics of the whole image.

A group normalisation that sees one tile uses that tile's mean and variance, so that each tile comes out a little
brighter or darker than its neighbours. Here the sums of all tiles are pooled: passes over the tiles collect them, and
the last pass normalises every tile with the same numbers, those of the whole image. The statistics of a layer depend on
what the layers before it did, so each pass makes at least one more layer exact; the passes end when nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from veilray.inference.tiles import Tile


class Pool:
    """What the group normalisations of one network share while an image is being tiled."""

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


def _on_pixels(values: Tensor) -> Tensor:
    """(C,) or (N, C) -> (1 or N, C, 1, 1)."""
    return values.reshape(-1, values.shape[-1], 1, 1)


def pool_group_norms(network: nn.Module) -> tuple[Pool, list[PooledGroupNorm]]:
    """Replace every nn.GroupNorm in `network` by a pooled one with the same parameters."""
    pool, norms = Pool(), []
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                norm = PooledGroupNorm(child, pool)
                setattr(module, name, norm)
                norms.append(norm)
    return pool, norms
