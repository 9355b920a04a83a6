"""The obfuscation itself: y = clip(x + n), n ~ N(mean, std^2), on pixels in [0, 1] (Adebayo & Khan 2025).

What an image gets is drawn first (`keyed_draw`) and applied after (`apply_draws`), so any noisy image can be replayed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilray.errors import UsageError
from veilray.obfuscation.config import NoiseConfig


@dataclass(frozen=True, kw_only=True)
class NoiseDraw:
    """What one image gets: the key of its noise field and its standard deviation."""

    key: int
    """128 bits; whoever knows it can subtract the noise."""
    mean: float
    """Mean, in units of the [0, 1] range."""
    std: float
    """Standard deviation, in units of the [0, 1] range."""


def keyed(name: str, purpose: bytes) -> int:
    """128 bits that a name and a purpose (at most 16 bytes) decide.

    What is drawn for one purpose says nothing of what is drawn for another, so each use needs a purpose of its own:
    `field`, `mean` and `std` are those of the noise here.
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16, person=purpose).digest(), "little")


def add_gaussian(
    x: Tensor, *, mean: float, std: float | Tensor, clip: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Add Gaussian noise to pixels and clamp the sum to [0, 1].

    `x` is float, any shape, in [0, 1]; `std` is a number or a tensor that broadcasts against `x`, such as (N, 1, 1, 1).
    Without `generator` torch's global one is used. Returns a new tensor like `x`. Raises UsageError where std is not
    positive.
    """
    if bool((torch.as_tensor(std) <= 0).any()):
        raise UsageError(f"std must be positive, not {std}")
    field = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return _apply(x, field, mean=mean, std=std, clip=clip)


def keyed_draw(config: NoiseConfig, *, seed: int, epoch: int, image_id: str) -> NoiseDraw:
    """The draw of one image in one epoch: a function of (seed, epoch, image_id) alone.

    So it is the same whatever the order of batches, the number of workers or the number of ranks. Where the
    configuration keeps its noise fixed, `epoch` has no say.
    """
    name = f"{seed}/{epoch if config.fresh else 0}/{image_id}"
    return NoiseDraw(
        key=keyed(name, b"field"),
        mean=_between(*config.mean_range, name, b"mean"),
        std=_between(*config.std_range, name, b"std"),
    )


def _between(low: float, high: float, name: str, purpose: bytes) -> float:
    return low if low == high else low + (high - low) * (keyed(name, purpose) / 2**128)


def apply_draws(clean: Tensor, draws: Sequence[NoiseDraw], *, clip: bool) -> Tensor:
    """Noisy images for a batch: (N, 1, H, W), float32, [0, 1], one draw an image, on the batch's device.

    The noise is bit-identical on every CPU; on other devices it is so for each kind of device.
    """
    fields = torch.empty_like(clean)
    for field, draw in zip(fields, draws, strict=True):
        fill_standard_normal(field, key=draw.key)
    std = torch.tensor([draw.std for draw in draws], dtype=clean.dtype, device=clean.device).view(-1, 1, 1, 1)
    mean = torch.tensor([draw.mean for draw in draws], dtype=clean.dtype, device=clean.device).view(-1, 1, 1, 1)
    return _apply(clean, fields, mean=mean, std=std, clip=clip)


def fill_standard_normal(field: Tensor, *, key: int) -> None:
    """Fill a contiguous float32 tensor with the standard normal field of a 128-bit key, in place.

    On the CPU by numpy's Philox, which takes the whole key (torch's CPU generator keeps 32 bits of its seed, too few
    to keep millions of draws apart); on other devices by torch's own generator there, seeded with 63 of the bits.
    """
    if field.device.type == "cpu":
        generator = np.random.Generator(np.random.Philox(key=key))
        generator.standard_normal(out=field.numpy(), dtype=np.float32)
    else:
        field.normal_(generator=torch.Generator(field.device).manual_seed(key & (2**63 - 1)))


def entropy_normal(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard normal values of the given shape from the operating system's entropy: no seed exists, none can leak.

    Box-Muller on 53-bit uniforms, so the tails reach 8.5 standard deviations.
    """
    count = int(np.prod(shape))
    pairs = (count + 1) // 2
    bits = np.frombuffer(os.urandom(16 * pairs), dtype=np.uint64).reshape(2, pairs)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[0]))
    angle = 2.0 * np.pi * uniform[1]
    values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return values[:count].reshape(shape).astype(np.float32)


def _apply(x: Tensor, field: Tensor, *, mean: float | Tensor, std: float | Tensor, clip: bool) -> Tensor:
    noisy = x + mean + field * std
    return noisy.clamp_(0.0, 1.0) if clip else noisy
