"""Objectives: what training minimises."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from veilray.models.unetpp import UNetPlusPlus
from veilray.training.config import LaunchConfig
from veilray.training.launch import autocast, laid_out


def image_losses(name: Literal["l1", "mse"], output: Tensor, target: Tensor) -> Tensor:
    """The loss of each image, (N,), float32 or float64: mean over its pixels of |error| (`l1`) or error^2 (`mse`).

    `output` and `target` are (N, 1, H, W). A batch's loss is the mean of these, so that sums and counts can cross
    batches and ranks.
    """
    error = output.to(torch.promote_types(output.dtype, torch.float32)) - target
    match name:
        case "l1":
            return error.abs().mean(dim=(1, 2, 3))
        case "mse":
            return error.square().mean(dim=(1, 2, 3))


class SupervisedObjective(nn.Module):
    """A network together with its loss, so that both run inside one forward pass, compiled or distributed."""

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Literal["l1", "mse"],
        deep_supervision: bool,
        launch: LaunchConfig | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._loss = loss
        self._deep_supervision = deep_supervision
        # Here, because the threads of DataParallel do not see the arithmetic that is set around them.
        self._launch = launch
        if isinstance(model, UNetPlusPlus) and not deep_supervision:
            model.heads[:-1].requires_grad_(False)  # unseen by the loss; ranks would wait for their gradients

    def forward(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """(N, 1, H, W) twice -> (N,): the loss of each image, in the arithmetic of the launch."""
        if self._launch is None:
            return self._losses(noisy, clean)
        with autocast(self._launch, noisy.device):
            return self._losses(laid_out(noisy, self._launch), clean)

    def _losses(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """The loss of each image, averaged over all heads under deep supervision."""
        if self._deep_supervision and isinstance(self.model, UNetPlusPlus):
            outputs = self.model.forward_heads(noisy)
        else:
            outputs = [self.model(noisy)]
        return torch.stack([image_losses(self._loss, output, clean) for output in outputs]).mean(dim=0)
