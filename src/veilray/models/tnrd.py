"""TNRD, trainable nonlinear reaction diffusion (Chen and Pock, IEEE TPAMI 39(6), 2017).

Stage t of the diffusion takes u to u - sum over i of K_i^T phi_i(K_i u) - lambda (u - f) (equation 5), with the noisy
image f, the filters K_i of 7 x 7, their influence functions phi_i, and the force lambda towards f. Filters are
combinations of the discrete cosines without the constant one, of unit length; influence functions are sums of 63
Gaussians (section 3.1). Pixels and responses are in units of the [0, 1] range; the paper's are 255 times as large.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veilray.models.config import MOST_TNRD_FILTERS, ModelConfig, checked_config
from veilray.models.layers import Window, without_autocast

KERNELS = 63
FARTHEST = 310 / 255
"""The Gaussians' centres lie evenly from -FARTHEST to FARTHEST; their deviation is the distance of two neighbours."""
SIDE = 7

_SPACING = 2 * FARTHEST / (KERNELS - 1)
_STEPS = 16  # of the table, from one centre to the next: within 0.05 % of a Gaussian's height
_BEYOND = 4  # centres' distances that the table goes on beyond the last centre, where nothing is left of it
_LAST = FARTHEST + _BEYOND * _SPACING
_SLOPE = 0.5 / SIDE**2  # of an influence at 0, of a stage that smooths by half
_SOFT = 25 / 255  # response beyond which the initial influence falls again


class TNRD(nn.Module):
    """(N, 1, H, W) -> (N, 1, H, W), any H and W: `stages` steps of diffusion, `width` filters each.

    Images are continued beyond their border by its pixels. After the last stage comes one more function of
    a pixel's brightness, u + phi(u), of the same kind, which the paper has no need of: filters without a constant part
    leave the mean as it is, so that they could take away neither the noise's mean nor what the clamp did to it.
    26,708 parameters at the defaults, 63 of them that function's. Raises UsageError for a size that does not exist.
    """

    def __init__(self, *, width: int = MOST_TNRD_FILTERS, stages: int = 5) -> None:
        super().__init__()
        self.config: ModelConfig = checked_config(name="tnrd", width=width, stages=stages)
        self.stages = nn.ModuleList(DiffusionStep(width) for _ in range(stages))
        self.brightness = Influence(1)

    @property
    def stride(self) -> int:
        """1: nothing is halved."""
        return 1

    @property
    def receptive_radius(self) -> int:
        """Distance in pixels, along an axis, beyond which no input pixel reaches an output pixel."""
        return self.config.stages * (SIDE - 1)

    @property
    def has_global_statistics(self) -> bool:
        """False: nothing averages over the image."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W), about [0, 1] -> (N, 1, H, W), not clamped."""
        with without_autocast(x):  # steps far smaller than the brightness they change
            noisy = x.to(torch.promote_types(x.dtype, torch.float32))
            output = noisy
            for stage in self.stages:
                output = stage(output, noisy)
            return output + cast(Tensor, self.brightness(output))

    def forward_tiles(self, x: Tensor, window: Window) -> Tensor:
        """What `forward` gives for tiles of an image, which is `forward`: nothing depends on where a tile lies."""
        return cast(Tensor, self(x))


class DiffusionStep(nn.Module):
    """One stage; it begins as a mild smoothing that stops at edges."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        # Along the diagonal, so that filter i begins as the i-th cosine.
        self.coefficients = nn.Parameter(torch.eye(filters, MOST_TNRD_FILTERS))
        self.influence = Influence(filters, slope=_SLOPE)
        self.force = nn.Parameter(torch.tensor(0.1))

    def forward(self, image: Tensor, noisy: Tensor) -> Tensor:
        """(N, 1, H, W) and the noisy image -> (N, 1, H, W)."""
        filters = self.filters()
        margin = SIDE // 2
        responses = F.conv2d(F.pad(image, (margin,) * 4, mode="replicate"), filters)
        step = F.conv_transpose2d(self.influence(responses), filters, padding=margin)
        return image - step - self.force * (image - noisy)

    def filters(self) -> Tensor:
        """(filters, 1, 7, 7), each of unit length and without a constant part."""
        unit = F.normalize(self.coefficients, dim=1)
        return (unit @ cosines().to(unit)).view(-1, 1, SIDE, SIDE)


class Influence(nn.Module):
    """A function for each channel, the sum of 63 Gaussians: (N, C, H, W) -> the same.

    phi(z) = sum over j of w_j exp(-(z - mu_j)^2 / (2 gamma^2)) / 255. It begins at 0, or as z / (1 + (z / s)^2) of a
    given slope. Evaluated by linear interpolation in a table that is made anew from the weights each time.
    """

    def __init__(self, channels: int, *, slope: float = 0.0) -> None:
        super().__init__()
        centres = _centres(torch.empty((), dtype=torch.float64))
        wanted = 255 * slope * centres / (1 + (centres / _SOFT) ** 2)
        weights = torch.linalg.solve(_gaussians(centres, centres), wanted)
        self.weights = nn.Parameter(weights.float().repeat(channels, 1))

    def forward(self, z: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        count = (KERNELS - 1 + 2 * _BEYOND) * _STEPS + 1
        places = torch.linspace(-_LAST, _LAST, count, device=z.device, dtype=self.weights.dtype)
        table = self.weights @ _gaussians(_centres(places), places) / 255
        return cast(Tensor, _Interpolation.apply(z, table))  # type: ignore[no-untyped-call]


class _Interpolation(torch.autograd.Function):
    """A table for each channel, read between its places; keeps z alone for the backward pass, not what it read."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(z, table)
        places, weight = _places(z, table)
        lower, upper = (_read(table, places, further=further) for further in (0, 1))
        return torch.lerp(lower, upper, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        z, table = ctx.saved_tensors
        places, weight = _places(z, table)
        rise = _read(table, places, further=1) - _read(table, places, further=0)
        of_z = gradient * rise * ((z.abs() < _LAST) * (_STEPS / _SPACING))
        upper, of_table = gradient * weight, torch.zeros_like(table).flatten()
        of_table.index_add_(0, places.flatten(), (gradient - upper).flatten())
        of_table[1:].index_add_(0, places.flatten(), upper.flatten())
        return of_z, of_table.view_as(table)


def _places(z: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Of each z, where in the flattened table the place below it is, and how far z lies on the way to the next."""
    positions = torch.add(z, _LAST).mul_(_STEPS / _SPACING).clamp_(0, table.shape[1] - 1)
    below = positions.long().clamp_(0, table.shape[1] - 2)  # whatever is not a number reads anywhere, and goes on so
    weight = positions.sub_(below)
    return below.add_(torch.arange(table.shape[0], device=z.device).view(-1, 1, 1) * table.shape[1]), weight


def _read(table: Tensor, places: Tensor, *, further: int) -> Tensor:
    """The values at places, or at the ones after them."""
    return table.flatten()[further:].index_select(0, places.flatten()).view(places.shape)


def _centres(like: Tensor) -> Tensor:
    return torch.linspace(-FARTHEST, FARTHEST, KERNELS, device=like.device, dtype=like.dtype)


def _gaussians(centres: Tensor, places: Tensor) -> Tensor:
    """(centres, places): the Gaussian of each centre at each place."""
    return torch.exp(-((places - centres[:, None]) ** 2) / (2 * _SPACING**2))


def cosines() -> Tensor:
    """The two-dimensional discrete cosines of 7 x 7, lowest frequencies first, without the constant: (48, 49)."""
    index = torch.arange(SIDE, dtype=torch.float64)
    lines = torch.cos(math.pi / SIDE * (index + 0.5) * index[:, None])
    lines = F.normalize(lines, dim=1)
    order = sorted((u + v, u, v) for u in range(SIDE) for v in range(SIDE))[1:]
    return torch.stack([torch.outer(lines[u], lines[v]).flatten() for _, u, v in order]).float()
