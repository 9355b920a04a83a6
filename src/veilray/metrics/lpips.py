"""LPIPS, the learned perceptual distance of Zhang, Isola, Efros, Shechtman and Wang (CVPR 2018): v0.1 with AlexNet.

The linear heads ship with torchmetrics; AlexNet's convolutions are a file named by the user, or torchvision's.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import os
import pickle
import urllib.request
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from veilray.errors import DataError, LpipsUnavailable, UsageError
from veilray.files import replacing, sha256_file
from veilray.metrics.check import check_pair

BACKBONE_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
BACKBONE_SHA256 = "7be5be79"
"""First digits of the backbone file's SHA-256, as torchvision gives them."""

FEATURES_SHA256 = "9eb3c4bd3fe719a984dfcc1c0824b64c676c305af8bea746e70f4f9e2de871c2"
"""SHA-256 of the convolutions in that file, as `features_digest` takes it: the same in whatever file they are."""
SMALLEST = 32
"""Pixels a side below which AlexNet's last stage has no field left to average over."""

# torchvision's index of each convolution: (input channels, output channels, kernel, stride, padding).
_CONVOLUTIONS = {
    0: (3, 64, 11, 4, 2),
    3: (64, 192, 5, 1, 2),
    6: (192, 384, 3, 1, 1),
    8: (384, 256, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}
_POOLED_BEFORE = (3, 6)
_TIMEOUT_S = 30.0

# Zhang et al.'s scaling layer: ImageNet's mean and deviation for inputs in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-8

Weights = dict[str, Tensor]


class LPIPS(nn.Module):
    """Perceptual distance of grey images; 0 is identical. Its weights take no gradient; its inputs do."""

    shift: Tensor
    scale: Tensor

    def __init__(self, *, backbone: Weights, heads: Weights) -> None:
        """`backbone`: features.N.weight and features.N.bias of AlexNet; `heads`: linK.model.1.weight, K = 0..4."""
        super().__init__()
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.digest = features_digest(backbone)
        """SHA-256 of the convolutions' values."""
        self.published = self.digest == FEATURES_SHA256
        """Whether these are the convolutions of LPIPS v0.1, so that its figures can be compared with others'."""
        self.features = nn.ModuleDict()
        for index, (inputs, outputs, kernel, stride, padding) in _CONVOLUTIONS.items():
            # On the meta device there is no random start, which would draw from the global generator for nothing.
            convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, device="meta")
            own = {name: backbone[f"features.{index}.{name}"] for name in ("weight", "bias")}
            convolution.load_state_dict(own, assign=True)
            self.features[str(index)] = convolution
        self.heads = nn.ParameterList([heads[f"lin{stage}.model.1.weight"] for stage in range(len(_CONVOLUTIONS))])
        self.requires_grad_(False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Distance of each pair of images: (N, 1, H, W), floating, [0, 1], at least 32 x 32 -> (N,)."""
        check_pair(output, target, smallest=SMALLEST)
        if output.shape[1] != 1:
            raise UsageError(f"LPIPS is computed on grey images (N, 1, H, W), not {tuple(output.shape)}")
        distance = output.new_zeros(len(output), dtype=self.shift.dtype)
        # Both images go through in one batch: one pass over the weights.
        maps = self._scaled(torch.cat([output, target]))
        for (index, convolution), head in zip(self.features.items(), self.heads, strict=True):
            if int(index) in _POOLED_BEFORE:
                maps = F.max_pool2d(maps, kernel_size=3, stride=2)
            maps = F.relu(convolution(maps))
            a, b = _unit_length(maps).chunk(2)
            distance = distance + F.conv2d((a - b).square(), head).mean(dim=(1, 2, 3))
        return distance

    def _scaled(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) in [0, 1] -> (N, 3, H, W) as AlexNet expects it."""
        signed: Tensor = 2.0 * images.to(self.shift.dtype) - 1.0
        return (signed - self.shift) / self.scale


def load_lpips(backbone: Path | None, *, download: bool = False) -> LPIPS:
    """LPIPS on the CPU with its weights, in evaluation mode.

    `backbone` is a .safetensors file with torchvision's names (features.0.weight, ...) or torchvision's .pth; without
    it torchvision's file is taken from the cache ($XDG_CACHE_HOME/veilray), and fetched into it first if `download`.
    Raises DataError for a file that holds something else, and LpipsUnavailable where the weights cannot be had.
    """
    path = backbone_file(backbone, download=download)
    return LPIPS(backbone=read_backbone(path), heads=_read_heads()).eval()


def backbone_file(backbone: Path | None, *, download: bool = False) -> Path:
    """`backbone`, or else the file in the cache, fetched first if `download`; LpipsUnavailable where there is none."""
    return _cached_backbone(download=download) if backbone is None else backbone


def _unit_length(maps: Tensor) -> Tensor:
    """Each pixel's feature vector divided by its length."""
    return maps / (maps.square().sum(dim=1, keepdim=True) + _EPSILON).sqrt()


def read_backbone(path: Path) -> Weights:
    """AlexNet's convolutions, features.N.weight and features.N.bias, from torchvision's weights; DataError if none."""
    weights = _read_weights(path)
    needed: Weights = {}
    for index, (inputs, outputs, kernel, _, _) in _CONVOLUTIONS.items():
        for name, shape in (("weight", (outputs, inputs, kernel, kernel)), ("bias", (outputs,))):
            key = f"features.{index}.{name}"
            if key not in weights or tuple(weights[key].shape) != shape:
                raise DataError(
                    f"{path} is no AlexNet backbone: it has no {key} of shape {shape}; give torchvision's weights"
                )
            needed[key] = weights[key].float()
            if not needed[key].isfinite().all():
                raise DataError(f"{path} is damaged: {key} holds values that are not finite; fetch the file again")
    return needed


def features_digest(backbone: Weights) -> str:
    """SHA-256 of the values of AlexNet's convolutions, as float32 in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(backbone):
        digest.update(backbone[name].contiguous().numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _read_weights(path: Path) -> Weights:
    if not path.is_file():
        raise DataError(f"no LPIPS backbone {path}; give torchvision's AlexNet weights as .safetensors or .pth")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, LookupError, RuntimeError, EOFError, ValueError, OSError):
        raise DataError(f"{path} is no file of weights; give torchvision's AlexNet as .safetensors or .pth") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no table of tensors; give torchvision's AlexNet as .safetensors or .pth")
    return {key: value for key, value in values.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _read_heads() -> Weights:
    # Only the file is wanted: importing torchmetrics takes seconds.
    found = importlib.util.find_spec("torchmetrics")
    if found is None or found.origin is None:
        raise LpipsUnavailable(
            "torchmetrics, which LPIPS takes its linear heads from, is not installed; pip install torchmetrics"
        )
    path = Path(found.origin).parent / "functional/image/lpips_models/alex.pth"
    if not path.is_file():
        raise LpipsUnavailable(f"this torchmetrics has no LPIPS heads at {path}; install a version from 1.7 to 1.9")
    return _read_weights(path)


def _cached_backbone(*, download: bool) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "veilray"
    path = cache / BACKBONE_URL.rpartition("/")[2]
    if path.is_file() and sha256_file(path).startswith(BACKBONE_SHA256):
        return path
    if not download:
        raise LpipsUnavailable("no AlexNet backbone was given; name one with --lpips-backbone FILE")
    try:
        with replacing(path) as part:
            _fetch(part)
    except (OSError, http.client.HTTPException) as error:
        raise LpipsUnavailable(
            f"the AlexNet backbone could not be fetched from {BACKBONE_URL} ({error}); "
            "name one with --lpips-backbone FILE"
        ) from None
    return path


def _fetch(path: Path) -> None:
    digest = hashlib.sha256()
    with (
        contextlib.closing(urllib.request.urlopen(BACKBONE_URL, timeout=_TIMEOUT_S)) as source,
        path.open("wb") as target,
    ):
        while block := source.read(1 << 20):
            digest.update(block)
            target.write(block)
    if not digest.hexdigest().startswith(BACKBONE_SHA256):
        raise OSError("the file does not have the expected digest")
