"""An adversarial objective: a second network learns to tell outputs from clean radiographs, patch by patch.

Patches as Isola, Zhu, Zhou and Efros, CVPR 2017; spectral normalisation and the hinge loss as Miyato, Kataoka, Koyama
and Yoshida, ICLR 2018 (equations 16 and 17). With the discriminator D, the clean image x and the output G, each image's
    network:        |G - x| - weight mean D(G),
    discriminator:  mean max(0, 1 - D(x)) + mean max(0, 1 + D(G)).
Both gradients are taken at the same weights, in one backward pass, and neither network is moved by the other's loss. An
output that a discriminator takes for a radiograph need not show what the patient has: adversarial training invents.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from veilray.training.objectives.pixel import image_losses

_SLOPE = 0.2
_HALVINGS = 3


class PatchDiscriminator(nn.Module):
    """(N, 1, H, W), 8 pixels a side or more -> (N, 1, about H / 8, about W / 8): higher where a patch looks clean.

    Three 4x4 convolutions of stride 2 and width, 2 width, 4 width channels, and a 3x3 one to a score, each divided by
    its largest singular value as one step of the power method a call estimates it. An image is judged by itself: there
    is no normalisation over the batch.
    """

    def __init__(self, *, width: int = 32) -> None:
        super().__init__()
        channels = [1, *(width * 2**level for level in range(_HALVINGS))]
        convolutions = [
            nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1) for before, after in pairwise(channels)
        ]
        convolutions.append(nn.Conv2d(channels[-1], 1, kernel_size=3, padding=1))
        self.convolutions = nn.ModuleList(spectral_norm(convolution) for convolution in convolutions)

    def forward(self, images: Tensor, *, frozen: bool = False) -> Tensor:
        """Scores of images, about [0, 1]. `frozen`: the gradient reaches the images and no weight."""
        x = 2.0 * images - 1.0
        for index, layer in enumerate(self.convolutions):
            assert isinstance(layer, nn.Conv2d)
            weight, bias = layer.weight, layer.bias
            assert bias is not None
            if frozen:
                weight, bias = weight.detach(), bias.detach()
            x = F.leaky_relu(x, _SLOPE) if index else x
            x = F.conv2d(x, weight, bias, stride=layer.stride, padding=layer.padding)
        return x


class AdversarialL1(nn.Module):
    """The network's loss of each image, (N, 1, H, W) twice -> (N,); its gradient holds the discriminator's too.

    `discriminator`: changed by an optimiser of its own, from the same backward pass.
    """

    def __init__(self, *, weight: float, discriminator: PatchDiscriminator) -> None:
        super().__init__()
        self.weight = weight
        self.discriminator = discriminator

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """(N, 1, H, W) twice -> (N,)."""
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        fooled = _mean(self.discriminator(output, frozen=True))
        judged = _mean(F.relu(1.0 - self.discriminator(target.to(output.dtype))))
        judged = judged + _mean(F.relu(1.0 + self.discriminator(output.detach())))
        # Zero, with the gradient of `judged`: the loss that is reported is the network's alone.
        return image_losses("adversarial", output, target) - self.weight * fooled + (judged - judged.detach())


def _mean(scores: Tensor) -> Tensor:
    return scores.mean(dim=(1, 2, 3))
