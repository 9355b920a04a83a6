"""AlexNet's convolutions with random weights, for who looks through them where the trained ones are not at hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHAPES = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
"""Outputs, inputs and kernel of each convolution, by torchvision's index."""


def random_weights() -> dict[str, Tensor]:
    """The same weights each time, of unit gain, as torchvision names them."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for index, (outputs, inputs, kernel) in SHAPES.items():
        shape = (outputs, inputs, kernel, kernel)
        weights[f"features.{index}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(inputs * kernel**2)
        weights[f"features.{index}.bias"] = torch.randn(outputs, generator=generator)
    return weights
