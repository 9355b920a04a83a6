"""How far an image denoised in tiles is from the same image denoised whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from veilray.errors import UsageError
from veilray.inference.denoiser import Denoiser


@dataclass(frozen=True, kw_only=True)
class TilingDifference:
    """How an image denoised in tiles differs from the same image denoised whole."""

    largest: float
    """Largest absolute difference of a pixel."""
    rms: float
    """Root mean square of the difference."""
    jump: float
    """Largest step of the difference between two neighbouring pixels on either side of a tile border."""


@torch.no_grad()
def tiling_difference(
    denoiser: Denoiser, noisy: Tensor, *, mean: float | None = None, std: float | None = None
) -> TilingDifference:
    """Denoise (N, 1, H, W), about [0, 1], in tiles and whole, and compare; the whole must fit in memory.

    `mean` and `std` of the noise as for `Denoiser`; a network that adds noise is compared without. Raises UsageError
    where the images are too small to be tiled.
    """
    height, width = noisy.shape[-2:]
    inputs, network = denoiser.network_inputs(noisy, mean=mean, std=std), denoiser.network
    tiles = network.tiles(inputs)
    if inputs.shape[-2] * inputs.shape[-1] <= network.tile**2 or len(tiles) == 1:
        raise UsageError(f"images of {width} x {height} fit one tile of {denoiser.tile} pixels: nothing to compare")
    tiled = torch.cat([network.tiled(image) for image in torch.split(inputs, 1)])
    difference = (tiled - network.whole(inputs, batch=1))[..., :height, :width]
    rows = sorted({tile.rows.first for tile in tiles} - {0})
    columns = sorted({tile.columns.first for tile in tiles} - {0})
    steps = [difference[..., row, :] - difference[..., row - 1, :] for row in rows if row < height]
    steps += [difference[..., column] - difference[..., column - 1] for column in columns if column < width]
    return TilingDifference(
        largest=difference.abs().max().item(),
        rms=difference.double().square().mean().sqrt().item(),
        jump=max((step.abs().max().item() for step in steps), default=0.0),
    )
