"""An objective on the features of AlexNet, from a file that the run pins by its digest.

After Johnson, Alahi and Fei-Fei, ECCV 2016, with the distance of Zhang et al., CVPR 2018, equation 1, without its
learnt weights: sum over five layers of the mean over places of the squared distance of feature vectors, each of unit
length. The learnt weights would make it LPIPS itself, by which results are judged.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from veilray.errors import DataError, UsageError
from veilray.files import sha256_file
from veilray.metrics.lpips import LPIPS, read_backbone
from veilray.training.config import RunConfig
from veilray.training.objectives.pixel import image_losses


class PerceptualL1(nn.Module):
    """|e| + weight D(output, target) of each image: (N, 1, H, W) twice, 32 pixels a side or more -> (N,).

    D is the distance of AlexNet features. It rewards texture that looks right wherever it lies, and so may invent some.
    """

    def __init__(self, *, weight: float, distance: nn.Module) -> None:
        super().__init__()
        self.weight = weight
        self.distance = distance

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """(N, 1, H, W) twice -> (N,)."""
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        distance: Tensor = self.distance(output, target.to(output.dtype))
        return image_losses("perceptual", output, target) + self.weight * distance


def feature_distance(path: Path, *, sha256: str) -> LPIPS:
    """The distance by the backbone in a file. DataError where it is missing, altered or no AlexNet."""
    if _digest(path) != sha256:
        raise DataError(
            f"{path} is not the perceptual backbone this run was begun with (its SHA-256 is not "
            f"train.perceptual_sha256 = {sha256[:12]}...): bring that file back, or begin a new run"
        )
    backbone = read_backbone(path)
    sizes = [value.shape[0] for name, value in backbone.items() if name.endswith(".weight")]
    heads = {f"lin{stage}.model.1.weight": torch.ones(1, size, 1, 1) for stage, size in enumerate(sizes)}
    return LPIPS(backbone=backbone, heads=heads).eval()


def backbone_warnings(config: RunConfig) -> list[str]:
    """What must be said of the perceptual backbone of a configuration whose files are pinned, before a training."""
    train = config.train
    if train.loss != "perceptual":
        return []
    path = Path(config.launch.perceptual_backbone)
    if feature_distance(path, sha256=train.perceptual_sha256).published:
        return []
    return [
        f"warning: {path} holds other convolutions than torchvision's AlexNet: it has been altered, or is of another "
        "training; the network learns what these see"
    ]


def with_pinned_backbone(config: RunConfig) -> RunConfig:
    """The configuration with the digest of its perceptual backbone in it, where its objective needs one.

    Raises UsageError where no file is named, DataError where it is missing or not the one of a digest given before.
    """
    if config.train.loss != "perceptual":
        return config
    if not config.launch.perceptual_backbone:
        raise UsageError(
            "train.loss = 'perceptual' needs launch.perceptual_backbone = FILE, AlexNet's convolutions as .safetensors"
        )
    path = Path(config.launch.perceptual_backbone)
    digest = config.train.perceptual_sha256 or _digest(path)
    feature_distance(path, sha256=digest)
    return config.model_copy(update={"train": config.train.model_copy(update={"perceptual_sha256": digest})})


def _digest(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"no perceptual backbone {path}; set launch.perceptual_backbone to AlexNet's .safetensors file")
    return sha256_file(path)
