"""A network with an objective that sees no clean image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from veilray.models.config import ModelConfig
from veilray.models.layers import with_noise_maps
from veilray.models.unetpp import UNetPlusPlus
from veilray.training.config import LaunchConfig, Objective
from veilray.training.draws import Drawn
from veilray.training.launch import run_network
from veilray.training.objectives.blind import blind_spot_losses, neighbour_criterion, neighbour_losses, second_losses
from veilray.training.objectives.pixel import image_losses
from veilray.training.objectives.recorrupted import recorrupted, recorrupted_losses
from veilray.training.objectives.sure import sure_losses


class NoisyOnlyObjective(nn.Module):
    """A network together with its objective, so that both run inside one forward pass, compiled or distributed."""

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: Objective,
        config: ModelConfig,
        clip: bool,
        recorruption: float = 0.0,
        launch: LaunchConfig | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._objective = objective
        self._inputs = config.channels_in - 1
        self._clip = clip
        self._recorruption = recorruption
        # Here, because the threads of DataParallel do not see the arithmetic that is set around them.
        self._launch = launch
        if isinstance(model, UNetPlusPlus):
            model.heads[:-1].requires_grad_(False)  # unseen by the loss; ranks would wait for their gradients

    def forward(
        self,
        noisy: Tensor,
        known: Tensor,
        drawn: Drawn,
        public_input: Tensor | None = None,
        public: Tensor | None = None,
    ) -> Tensor:
        """The loss of each image, (N,), in units of the squared error; with M public images, (N + M,).

        `noisy`: (N, 1, H, W). `known`: (N, 2), mean and std of the noise. `drawn`: what the objective takes besides.
        `public_input`: (M, C, H, W), noisy public images as the network takes them; `public`: (M, 1, H, W), the clean
        ones, whose loss is the squared error.
        """
        losses = self._losses(noisy, known, drawn)
        if public_input is None or public is None:
            return losses
        return torch.cat([losses, image_losses("mse", self._run(public_input), public)])

    def _losses(self, noisy: Tensor, known: Tensor, drawn: Drawn) -> Tensor:
        network, clip = self._network, self._clip
        match self._objective:
            case "sure" | "censored_sure":
                assert drawn.signs is not None
                assert drawn.probe_weight is not None
                return sure_losses(network, noisy, known, signs=drawn.signs, weight=drawn.probe_weight, clip=clip)
            case "r2r" | "noisier2noise" | "censored_r2r":
                assert drawn.normals is not None
                strength = self._recorruption
                return recorrupted_losses(network, noisy, known, normals=drawn.normals, strength=strength, clip=clip)
            case "blind_spot":
                assert drawn.places is not None
                return blind_spot_losses(network, noisy, known, places=drawn.places, clip=clip)
            case "neighbor2neighbor":
                assert drawn.places is not None
                return neighbour_losses(network, noisy, known, places=drawn.places, clip=clip)
            case "noise2noise":
                assert drawn.second is not None
                return second_losses(network, noisy, known, second=drawn.second, clip=clip)
            case "auto" | "supervised":
                raise ValueError(f"{self._objective} is no objective without clean images")

    def criterion(self, noisy: Tensor, known: Tensor, drawn: Drawn) -> Tensor:
        """What epochs are compared by, of each image, (N,); smaller is better. The loss, where that tells."""
        if self._objective != "neighbor2neighbor":
            return self._losses(noisy, known, drawn)
        assert drawn.places is not None
        return neighbour_criterion(self._network, noisy, known, places=drawn.places, clip=self._clip)

    def estimates(self, noisy: Tensor, known: Tensor, drawn: Drawn) -> Tensor:
        """What the network makes of images as it sees them at inference, with one added noise: (N, 1, H, W)."""
        if drawn.normals is not None:
            noisy, known = recorrupted(noisy, known, normals=drawn.normals, strength=self._recorruption)
        return self._network(noisy, known)

    def _network(self, images: Tensor, known: Tensor) -> Tensor:
        return self._run(with_noise_maps(images, known[:, : self._inputs]))

    def _run(self, inputs: Tensor) -> Tensor:
        if self._launch is None:
            output: Tensor = self.model(inputs)
            return output
        return run_network(self.model, inputs, self._launch)
