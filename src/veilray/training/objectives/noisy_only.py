"""A network with an objective that sees no clean image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from veilray.models.config import ModelConfig
from veilray.models.layers import with_noise_maps
from veilray.models.unetpp import UNetPlusPlus
from veilray.training.config import LaunchConfig, Objective
from veilray.training.launch import autocast, laid_out
from veilray.training.objectives.sure import sure_losses


class NoisyOnlyObjective(nn.Module):
    """A network together with its objective, so that both run inside one forward pass, compiled or distributed."""

    def __init__(
        self, model: nn.Module, *, objective: Objective, config: ModelConfig, launch: LaunchConfig | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self._objective = objective
        self._inputs = config.channels_in - 1
        # Here, because the threads of DataParallel do not see the arithmetic that is set around them.
        self._launch = launch
        if isinstance(model, UNetPlusPlus):
            model.heads[:-1].requires_grad_(False)  # unseen by the loss; ranks would wait for their gradients

    def forward(self, noisy: Tensor, known: Tensor, field: Tensor, weight: Tensor) -> Tensor:
        """The loss of each image, (N,), in units of the squared error.

        `noisy`: (N, 1, H, W). `known`: (N, 2), mean and std of the noise. `field`: (N, 1, H, W), what the objective
        draws for each pixel. `weight`: (N,), how much an image's probe counts.
        """
        clip = self._objective == "censored_sure"
        return sure_losses(self._network, noisy, known, signs=field, weight=weight, clip=clip)

    def _network(self, images: Tensor, known: Tensor) -> Tensor:
        inputs = with_noise_maps(images, known[:, : self._inputs])
        if self._launch is None:
            output: Tensor = self.model(inputs)
            return output
        with autocast(self._launch, images.device):
            output = self.model(laid_out(inputs, self._launch))
        return output.to(torch.promote_types(output.dtype, torch.float32))
