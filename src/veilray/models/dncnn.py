"""DnCNN: a chain of convolutions that predicts the noise (Zhang, Zuo, Chen, Meng and Zhang, IEEE TIP 26(7), 2017)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from veilray.models.config import Inputs, ModelConfig, checked_config
from veilray.models.layers import Window, noisy_image


class DnCNN(nn.Module):
    """(N, C, H, W) -> (N, 1, H, W), any H and W; C is 1, or more where the noise's mean and std are inputs.

    `layers` convolutions of 3x3 and `width` channels, with ReLU after all but the last and batch normalisation before
    it in all but the first; the output is the input less what they predict (section III-A). 17 layers are the network
    of the paper for one level of noise, 20 the blind one and the one of three tasks, DnCNN-3 (section IV-A). The
    convolutions before a normalisation have no bias, which it would take away.
    556,097 parameters at the defaults. Raises UsageError for a size that does not exist.
    """

    def __init__(self, *, width: int = 64, layers: int = 17, inputs: Inputs = "image") -> None:
        super().__init__()
        self.config: ModelConfig = checked_config(name="dncnn", width=width, layers=layers, inputs=inputs)
        chain: list[nn.Module] = [nn.Conv2d(self.config.channels_in, width, kernel_size=3, padding=1), nn.ReLU()]
        for _ in range(layers - 2):
            convolution = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
            chain += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.chain = nn.Sequential(*chain, nn.Conv2d(width, 1, kernel_size=3, padding=1))

    @property
    def stride(self) -> int:
        """1: nothing is halved."""
        return 1

    @property
    def receptive_radius(self) -> int:
        """Distance in pixels, along an axis, beyond which no input pixel reaches an output pixel."""
        return self.config.layers

    @property
    def has_global_statistics(self) -> bool:
        """False: in use, batch normalisation has the statistics of the training."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W): noisy image about [0, 1], then maps of the inputs -> (N, 1, H, W), not clamped."""
        return noisy_image(x) - cast(Tensor, self.chain(x))

    def forward_tiles(self, x: Tensor, window: Window) -> Tensor:
        """What `forward` gives for tiles of an image, which is `forward`: nothing depends on where a tile lies."""
        return cast(Tensor, self(x))
