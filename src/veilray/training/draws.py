"""What an objective draws for each pixel of an image: a function of a name, so the same in any order, on any rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from veilray.images.radiograph import FloatImage
from veilray.training.config import Objective
from veilray.training.objectives.blind import DIRECTIONS, SPACING


def keyed(name: str, purpose: bytes) -> int:
    """128 bits that a name and a purpose (at most 16 bytes) decide."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16, person=purpose).digest(), "little")


def fields(objective: Objective, names: Sequence[str], shape: tuple[int, int]) -> Tensor:
    """What an objective draws for the images of these names: (N, 1, H, W), float32."""
    match objective:
        case "sure" | "censored_sure":
            return sign_fields(names, shape)
        case "r2r" | "noisier2noise" | "censored_r2r":
            return _stacked([_generator(name).standard_normal(shape, dtype=np.float32) for name in names])
        case "blind_spot":
            return _whole_numbers(names, shape, SPACING * DIRECTIONS)
        case "neighbor2neighbor":
            return _whole_numbers(names, shape, DIRECTIONS)
        case _:
            raise ValueError(f"{objective} draws nothing")


def sign_fields(names: Sequence[str], shape: tuple[int, int]) -> Tensor:
    """A field of -1 and 1 for each name, evenly: (N, 1, H, W), float32."""
    return _stacked([_signs(name, shape) for name in names])


def _whole_numbers(names: Sequence[str], shape: tuple[int, int], end: int) -> Tensor:
    return _stacked([_generator(name).integers(end, size=shape, dtype=np.uint8).astype(np.float32) for name in names])


def _stacked(images: Sequence[FloatImage]) -> Tensor:
    return torch.from_numpy(np.stack(images)[:, None])


def _signs(name: str, shape: tuple[int, int]) -> FloatImage:
    count = shape[0] * shape[1]
    bits = np.unpackbits(np.frombuffer(_generator(name).bytes(-(-count // 8)), dtype=np.uint8), count=count)
    signs: FloatImage = bits.astype(np.float32).reshape(shape) * 2 - 1
    return signs


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=keyed(name, b"field")))
