"""A network with its objective, whichever it is."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from veilray.models.unetpp import UNetPlusPlus
from veilray.training.config import LaunchConfig, Loss, RunConfig
from veilray.training.launch import autocast, laid_out
from veilray.training.objectives.adversarial import AdversarialL1, PatchDiscriminator
from veilray.training.objectives.frequency import FrequencyL1
from veilray.training.objectives.perceptual import PerceptualL1, feature_distance
from veilray.training.objectives.pixel import image_losses
from veilray.training.objectives.structure import MsSsimL1


class SupervisedObjective(nn.Module):
    """A network together with its loss, so that both run inside one forward pass, compiled or distributed.

    `criterion` gives each image's loss, (N, 1, H, W) twice -> (N,); without it the pixel part of `loss` is all.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss,
        deep_supervision: bool,
        launch: LaunchConfig | None = None,
        criterion: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self._loss = loss
        self._deep_supervision = deep_supervision
        # Here, because the threads of DataParallel do not see the arithmetic that is set around them.
        self._launch = launch
        if isinstance(model, UNetPlusPlus) and not deep_supervision:
            model.heads[:-1].requires_grad_(False)  # unseen by the loss; ranks would wait for their gradients

    def forward(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """(N, C, H, W) and (N, 1, H, W) -> (N,): the loss of each image.

        The network computes in the arithmetic of the launch, the loss in float32; under deep supervision it is the mean
        over all heads.
        """
        if self._launch is None:
            outputs = self._outputs(noisy)
        else:
            with autocast(self._launch, noisy.device):
                outputs = self._outputs(laid_out(noisy, self._launch))
        return torch.stack([self._losses(output, clean) for output in outputs]).mean(dim=0)

    def _outputs(self, noisy: Tensor) -> list[Tensor]:
        if self._deep_supervision and isinstance(self.model, UNetPlusPlus):
            return self.model.forward_heads(noisy)
        return [self.model(noisy)]

    def _losses(self, output: Tensor, clean: Tensor) -> Tensor:
        if self.criterion is None:
            return image_losses(self._loss, output, clean)
        losses: Tensor = self.criterion(output, clean)
        return losses


def criterion_of(config: RunConfig, *, discriminator: PatchDiscriminator | None) -> nn.Module | None:
    """What a configuration's objective adds to pixels; None where it adds nothing. `discriminator`: of `adversarial`.

    Raises DataError where the perceptual backbone is missing or altered.
    """
    weight = config.train.loss_weight
    match config.train.loss:
        case "ms_ssim_l1":
            return MsSsimL1(weight=weight)
        case "frequency":
            return FrequencyL1(weight=weight)
        case "perceptual":
            path, digest = Path(config.launch.perceptual_backbone), config.train.perceptual_sha256
            return PerceptualL1(weight=weight, distance=feature_distance(path, sha256=digest))
        case "adversarial":
            assert discriminator is not None
            return AdversarialL1(weight=weight, discriminator=discriminator)
        case _:
            return None


def discriminator_of(config: RunConfig) -> PatchDiscriminator | None:
    """The second network of an adversarial objective, its weights drawn from the global generator; None of others."""
    if config.train.loss != "adversarial":
        return None
    return PatchDiscriminator(width=config.train.discriminator_width)
