"""What an objective draws for each pixel of an image: a function of a name, so the same in any order, on any rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilray.images.radiograph import FloatImage
from veilray.obfuscation.noise import keyed
from veilray.training.config import Objective
from veilray.training.objectives.blind import DIRECTIONS, SPACING

Floats = npt.NDArray[np.float32]


class Drawn(NamedTuple):
    """What an objective that sees no clean image takes beside the noisy images; None for what it has no use for.

    A named tuple, because nn.DataParallel cuts those up as it does the images. All but `probe_weight` are
    (N, 1, H, W), float32.
    """

    signs: Tensor | None = None
    """sure, censored_sure: the direction along which the divergence is measured, -1 or 1."""
    probe_weight: Tensor | None = None
    """sure, censored_sure: how much the divergence of an image counts, (N,), float32; 0 where none is measured."""
    normals: Tensor | None = None
    """r2r, noisier2noise, censored_r2r: standard normal values, from which the added noise is made."""
    places: Tensor | None = None
    """blind_spot, neighbor2neighbor: whole numbers, which say what is hidden or taken of a pixel or square."""
    second: Tensor | None = None
    """noise2noise: the same images in the second release."""

    def to(self, device: torch.device) -> Drawn:
        """The same on a device."""
        return Drawn(*(None if one is None else one.to(device) for one in self))


def draw(objective: Objective, names: Sequence[str], shape: tuple[int, int], *, weights: Floats) -> Drawn:
    """What an objective draws for the images of these names; `weights`, (N,): how much the probe of each counts."""
    match objective:
        case "sure" | "censored_sure":
            return Drawn(signs=sign_fields(names, shape), probe_weight=torch.from_numpy(weights))
        case "r2r" | "noisier2noise" | "censored_r2r":
            values = [_generator(name).standard_normal(shape, dtype=np.float32) for name in names]
            return Drawn(normals=_stacked(values, shape))
        case "blind_spot":
            return Drawn(places=_whole_numbers(names, shape, SPACING * DIRECTIONS))
        case "neighbor2neighbor":
            return Drawn(places=_whole_numbers(names, shape, DIRECTIONS))
        case _:
            raise ValueError(f"{objective} draws nothing")


def sign_fields(names: Sequence[str], shape: tuple[int, int]) -> Tensor:
    """A field of -1 and 1 for each name, evenly: (N, 1, H, W), float32."""
    return _stacked([_signs(name, shape) for name in names], shape)


def _whole_numbers(names: Sequence[str], shape: tuple[int, int], end: int) -> Tensor:
    values = [_generator(name).integers(end, size=shape, dtype=np.uint8).astype(np.float32) for name in names]
    return _stacked(values, shape)


def _stacked(images: Sequence[FloatImage], shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.array(images, dtype=np.float32).reshape(-1, 1, *shape))


def _signs(name: str, shape: tuple[int, int]) -> FloatImage:
    count = shape[0] * shape[1]
    bits = np.unpackbits(np.frombuffer(_generator(name).bytes(-(-count // 8)), dtype=np.uint8), count=count)
    signs: FloatImage = bits.astype(np.float32).reshape(shape) * 2 - 1
    return signs


def _generator(name: str) -> np.random.Generator:
    # Not b"field", by which the image's own noise is drawn: what an objective draws must be independent of it.
    return np.random.Generator(np.random.Philox(key=keyed(name, b"drawn")))
