"""What an attacker looks at in an image: thumbnails, histograms of gradients, AlexNet's convolutions.

Each kind of feature ends as a matrix of similarities between all images of a variant, which is all that the learned
attackers need of it (kernel methods), and small whatever the number of features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from veilray.metrics.lpips import Weights, read_backbone

Features = npt.NDArray[np.float32]
"""(N, D)"""
Similarities = npt.NDArray[np.float64]
"""(N, N)"""

THUMBNAIL = 32
_GRADIENTS = 128
_CELL = 16
_BINS = 9
_FINE = 224
_COARSE = 112
_BLURRED = 56
_GRID = 6
_SHIFT = 3
_BATCH = 32
_EPSILON = 1e-6


def shrunk(images: Tensor, side: int) -> Tensor:
    """(n, H, W) -> (n, side, side): each pixel the mean of the area it covers."""
    if tuple(images.shape[1:]) == (side, side):
        return images
    return F.interpolate(images[:, None], size=(side, side), mode="area")[:, 0]


def standardised(images: Tensor) -> Tensor:
    """(n, H, W) with mean 0 and deviation 1 in each image, so that exposure and the noise's mean say nothing."""
    flat = images.flatten(1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    return (centred / (centred.std(dim=1, keepdim=True) + _EPSILON)).view(images.shape)


def thumbnails(images: Tensor) -> Tensor:
    """(n, H, W) -> (n, 32, 32), standardised."""
    return standardised(shrunk(images, THUMBNAIL))


def gradient_histograms(images: Tensor, *, side: int = _GRADIENTS, cell: int = _CELL) -> Tensor:
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005): (n, H, W) -> (n, D).

    9 unsigned orientations, each gradient shared between the two next to it, cells of `cell` pixels of the image
    shrunk to `side`, blocks of 2 x 2 cells with L2-Hys normalisation (clipped at 0.2, normalised again).
    """
    small = shrunk(images, side)
    across = F.pad(small[:, None, :, 2:] - small[:, None, :, :-2], (1, 1, 0, 0))
    down = F.pad(small[:, None, 2:] - small[:, None, :-2], (0, 0, 1, 1))
    strength = torch.hypot(across, down)
    angle = torch.remainder(torch.atan2(down, across) / torch.pi, 1.0) * _BINS
    centres = torch.arange(_BINS, dtype=small.dtype).view(1, -1, 1, 1)
    apart = torch.remainder(angle - centres + _BINS / 2, _BINS) - _BINS / 2
    cells = F.avg_pool2d(strength * (1.0 - apart.abs()).clamp_min(0.0), cell)
    blocks = torch.cat([cells[..., y : y - 1 or None, x : x - 1 or None] for y in (0, 1) for x in (0, 1)], dim=1)
    blocks = F.normalize(blocks, dim=1).clamp_max(0.2)
    return F.normalize(blocks, dim=1).flatten(1)


class AlexNetFeatures:
    """AlexNet's convolutions as trained on ImageNet, each pooled to 6 x 6."""

    def __init__(self, weights: Weights) -> None:
        """`weights`: features.N.weight and features.N.bias, as torchvision names them."""
        # Channels last, in which convolutions and pooling take three quarters of the time.
        self._weights = {name: _channels_last(tensor) for name, tensor in weights.items()}
        # An image that is grey in all three channels meets the sum of a filter over them.
        self._first = _channels_last(weights["features.0.weight"].sum(dim=1, keepdim=True))

    @classmethod
    def read(cls, backbone: Path) -> AlexNetFeatures:
        """From a file of torchvision's weights; DataError where it is none."""
        return cls(read_backbone(backbone))

    def __call__(self, images: Tensor, *, side: int) -> list[Tensor]:
        """(n, H, W) -> what the second to the fifth convolution say, each (n, channels * 36)."""
        maps = _channels_last(standardised(shrunk(images, side))[:, None])
        maps = F.relu(F.conv2d(maps, self._first, self._weights["features.0.bias"], stride=4, padding=2))
        told = []
        for index, padding in ((3, 2), (6, 1), (8, 1), (10, 1)):
            if index in (3, 6):
                maps = F.max_pool2d(maps, kernel_size=3, stride=2)
            kernel, bias = self._weights[f"features.{index}.weight"], self._weights[f"features.{index}.bias"]
            maps = F.relu(F.conv2d(maps, kernel, bias, padding=padding))
            told.append(F.adaptive_avg_pool2d(maps, _GRID).flatten(1))
        return told


Bank = Callable[[Tensor], list[Tensor]]


def banks(alexnet: AlexNetFeatures | None, *, fine: bool) -> dict[str, Bank]:
    """The kinds of features by name, each a function from (n, H, W) to parts (n, D).

    AlexNet looks at 224 pixels a side (where `fine`), at 112, and at 112 of which only 56 are told, where noise
    has been averaged away.
    """
    found: dict[str, Bank] = {
        "thumbnails": lambda images: [standardised(shrunk(images, 2 * THUMBNAIL)).flatten(1)],
        "gradients": lambda images: [
            gradient_histograms(images),
            gradient_histograms(images, side=_GRADIENTS // 2, cell=_CELL // 2),
        ],
    }
    if alexnet is not None:
        found["AlexNet at 56"] = lambda images: alexnet(_enlarged(shrunk(images, _BLURRED), _COARSE), side=_COARSE)
        found["AlexNet at 112"] = lambda images: alexnet(images, side=_COARSE)
        if fine:
            found["AlexNet at 224"] = lambda images: alexnet(images, side=_FINE)
    return found


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _enlarged(images: Tensor, side: int) -> Tensor:
    """(n, H, W) -> (n, side, side), linearly between pixels."""
    return F.interpolate(images[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]


@torch.inference_mode()
def similarities(
    read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]], count: int, kinds: dict[str, Bank]
) -> dict[str, Similarities]:
    """For each kind of features the inner products between all images, (N, N), every part with the same say.

    `read` gives images by their places from 0 to count - 1, (n, H, W), [0, 1]. Features are square roots with their
    sign, which keep a few strong ones from deciding alone, at length 1.
    """
    parts: dict[str, list[list[Tensor]]] = {name: [] for name in kinds}
    for start in range(0, count, _BATCH):
        images = torch.from_numpy(read(np.arange(start, min(start + _BATCH, count))))
        for name, bank in kinds.items():
            # Half precision keeps some thousand features of some thousand images in memory.
            parts[name].append([F.normalize(part.sign() * part.abs().sqrt()).half() for part in bank(images)])
    return {name: _gram([torch.cat(blocks) for blocks in zip(*chunks, strict=True)]) for name, chunks in parts.items()}


def registered_correlation(small: npt.NDArray[np.float32]) -> Similarities:
    """Correlation of thumbnails at the shift that fits best, up to 3 pixels each way: (N, 32, 32) -> (N, N)."""
    side = small.shape[1] - 2 * _SHIFT
    centre = _unit(small[:, _SHIFT : _SHIFT + side, _SHIFT : _SHIFT + side])
    best = np.full((len(small), len(small)), -np.inf, dtype=np.float32)
    for y in range(2 * _SHIFT + 1):
        for x in range(2 * _SHIFT + 1):
            np.maximum(best, centre @ _unit(small[:, y : y + side, x : x + side]).T, out=best)
    symmetric: Similarities = (best.astype(np.float64) + best.T) / 2.0
    return symmetric


def cosine(features: Features) -> Similarities:
    """Correlation between feature vectors less their mean over the images: (N, D) -> (N, N)."""
    unit = _unit(features - features.mean(axis=0, keepdims=True))
    return (unit @ unit.T).astype(np.float64)


def _unit(values: npt.NDArray[np.float32]) -> Features:
    flat = values.reshape(len(values), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    unit: Features = flat / (np.linalg.norm(flat, axis=1, keepdims=True) + np.float32(_EPSILON))
    return unit


def _gram(parts: list[Tensor]) -> Similarities:
    total = torch.zeros(len(parts[0]), len(parts[0]), dtype=torch.float64)
    for part in parts:
        centred = part.float() - part.float().mean(dim=0, keepdim=True)
        products = (centred @ centred.T).double()
        total += products / (products.diagonal().mean() + _EPSILON**2)
    return total.numpy()
