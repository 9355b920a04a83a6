"""What an objective draws for each pixel of an image: a function of a name, so the same in any order, on any rank."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from veilray.images.radiograph import FloatImage


def keyed(name: str, purpose: bytes) -> int:
    """128 bits that a name and a purpose (at most 16 bytes) decide."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16, person=purpose).digest(), "little")


def sign_fields(names: Sequence[str], shape: tuple[int, int]) -> Tensor:
    """A field of -1 and 1 for each name, evenly: (N, 1, H, W), float32."""
    return torch.from_numpy(np.stack([_signs(name, shape) for name in names])[:, None])


def _signs(name: str, shape: tuple[int, int]) -> FloatImage:
    count = shape[0] * shape[1]
    bits = np.unpackbits(np.frombuffer(_generator(name).bytes(-(-count // 8)), dtype=np.uint8), count=count)
    signs: FloatImage = bits.astype(np.float32).reshape(shape) * 2 - 1
    return signs


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=keyed(name, b"field")))
