"""A trained network on images of any size."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from veilray.errors import ImageError, UsageError
from veilray.images.radiograph import FloatImage
from veilray.inference.doubts import noise_doubts
from veilray.inference.engine import Precision
from veilray.inference.given import check_mean, check_pixels, each_std
from veilray.inference.prepared import PreparedNetwork
from veilray.models.build import DenoisingNetwork
from veilray.models.layers import pad_to_multiple, with_noise_maps
from veilray.models.unetpp import UNetPlusPlus
from veilray.models.weights import model_of
from veilray.obfuscation.config import NoiseConfig, Recorruption
from veilray.obfuscation.estimate import estimate_noise_std
from veilray.parallel.devices import pick_device
from veilray.training.source import open_weights


@dataclass(frozen=True)
class Origin:
    """Where a denoiser's weights came from."""

    weights_sha256: str
    """SHA-256 of the file of weights, in hexadecimal."""
    head: int | None = None
    """Head of a U-Net++ that the network was cut at."""


class Denoiser:
    """A network prepared for inference, with the noise it was trained to take away.

    `noise` is None where that is not known; then every call must say the mean. `tile` is the side of the largest square
    that goes through the network at once, which bounds the memory: smaller images are batched up to that many pixels,
    on a processor up to 256 x 256; larger ones are cut into tiles. Tiles overlap by the network's receptive radius, so
    the result is the whole image's up to rounding (`inference.tiling` measures it). Under group normalisation and in a
    Restormer, where every pixel depends on all others, more passes over the tiles find the statistics of the whole
    image first: ten times the work at depth 5.
    `recorruption`: noise that is added to every image, the same to all, as often as it says, before the network sees
    it; the outputs are averaged.
    `origin` says where the weights came from, for records; None where they came from no file.

    Raises UsageError for an unknown device or precision, or a tile smaller than the network allows.
    """

    def __init__(
        self,
        model: DenoisingNetwork,
        *,
        noise: NoiseConfig | None,
        device: str = "auto",
        precision: Precision | str = "auto",
        tile: int | None = None,
        origin: Origin | None = None,
        recorruption: Recorruption | None = None,
    ) -> None:
        self.origin = origin
        self._recorruption = recorruption
        self.config = model.config
        self.noise = noise
        self.network = PreparedNetwork(model, device=pick_device(device), precision=precision, tile=tile)

    @property
    def takes_std(self) -> bool:
        """Whether the noise's std makes a difference: the network is told it, or adds noise in proportion."""
        return self.config.channels_in > 2 or self._recorruption is not None

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """The arithmetic of most of its layers."""
        return self.network.dtype

    @property
    def tile(self) -> int:
        """Side of the largest square that goes through the network at once."""
        return self.network.tile

    @property
    def keeps_statistics(self) -> bool:
        """Whether the tiles of an image share statistics, which are kept meanwhile: one thread at a time, then."""
        return self.network.keeps_statistics

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        precision: Precision | str = "auto",
        tile: int | None = None,
        head: int | None = None,
    ) -> Denoiser:
        """A run folder (its best weights), an exported model's folder, a file of weights, or a shipped model's name.

        `head` k of a U-Net++ takes its output at X(0, k), by the smaller network that ends there; it is worth looking
        at where that head was trained (model.deep_supervision).

        Raises UsageError where `path` is none of them or the network has no such head, RunError where its weights are
        missing, damaged or of another model.
        """
        loaded = open_weights(path)
        model = model_of(loaded.weights)
        if head is not None:
            if not isinstance(model, UNetPlusPlus):
                raise UsageError(f"head = {head}: only a U-Net++ has several heads, and this is a {model.config.name}")
            model = model.pruned(head)
        origin = Origin(loaded.sha256, head)
        return cls(
            model,
            noise=loaded.noise,
            device=device,
            precision=precision,
            tile=tile,
            origin=origin,
            recorruption=loaded.weights.recorruption,
        )

    def __call__(
        self, pixels: FloatImage, *, mean: float | None = None, std: float | None = None, warn: bool = True
    ) -> FloatImage:
        """Denoise one radiograph: (H, W), float32, [0, 1] -> the same, clamped.

        `mean` is the mean of the noise in this image, by default that of the training; where the network is told the
        mean it is 0 by default, that of an image which was never obfuscated. `std` is the noise's standard deviation,
        by default estimated from the image; only networks that are told it use it. Another mean is made up for by
        shifting the image by the difference, and clamping it again where the training noise was clamped. That is exact
        without clamping, up to float32; with it, pixels that this image's clamp cut off lie elsewhere than the
        training's would have, so the darkest or brightest parts are estimated worse. Where the training noise is
        unknown, `mean` is taken for the training's. Raises UsageError where neither is known, for another shape, for
        pixels of whole numbers or far outside [0, 1], or for a `mean` or `std` that none can be; ImageError where `std`
        is to be estimated for the network and the image is too small for that.

        `warn`: a UserWarning says so where the noise is far outside the training's, or where it looks like that of an
        obfuscated image whose mean was not given; an image whose `std` is not given has it estimated for that.
        """
        if pixels.ndim != 2 or not pixels.size:
            raise UsageError(f"an image has two sides (H, W) of at least one pixel; this one has shape {pixels.shape}")
        output: FloatImage = self.several(pixels[None], mean=mean, std=std, warn=warn)[0]
        return output

    def several(
        self,
        pixels: FloatImage,
        *,
        mean: float | None = None,
        std: float | Sequence[float] | None = None,
        warn: bool = True,
    ) -> FloatImage:
        """Denoise radiographs of one size together: (N, H, W), float32, [0, 1] -> the same, as one alone to rounding.

        `std` is one for all of them or one for each. Of several images with the same doubt one warning is given.
        """
        if pixels.ndim != 3:
            raise UsageError(f"images come as (N, H, W); these have shape {pixels.shape}")
        check_pixels(pixels)
        check_mean(mean)
        stds = each_std(std, count=len(pixels))
        noisy = torch.from_numpy(np.array(pixels, dtype=np.float32, order="C"))
        if warn:
            self._warn(pixels, mean, [None] * len(pixels) if stds is None else stds)
        told = None if stds is None else torch.tensor(stds, dtype=torch.float32)
        outputs: FloatImage = self.denoise(noisy[:, None], mean=mean, std=told)[:, 0].clamp(0.0, 1.0).numpy()
        return outputs

    @torch.no_grad()  # not inference_mode: what comes out is an ordinary tensor, which may be written to
    def denoise(
        self, noisy: Tensor, *, mean: float | Tensor | None = None, std: float | Tensor | None = None
    ) -> Tensor:
        """(N, 1, H, W), about [0, 1] -> (N, 1, H, W), float32, not clamped, on the device of `noisy`.

        `mean` and `std` of the noise, one for all images or (N,), are made up for, assumed or estimated as `__call__`
        does it. A network that was trained on clamped noise gets the images clamped to [0, 1]. Raises UsageError for
        another shape.
        """
        if noisy.ndim != 4 or noisy.shape[1] != 1:
            raise UsageError(f"images come as (N, 1, H, W); these have shape {tuple(noisy.shape)}")
        if not noisy.numel():
            return noisy.float()
        noisy, mean = self._with_trained_mean(noisy, mean)
        if self._recorruption is None:
            return self._denoised(noisy, mean=mean, std=std)
        added, total = self._added(noisy, std)
        count = self._recorruption.count
        passes = (
            self._denoised(noisy.float() + added * _field(number, noisy), mean=mean, std=total)
            for number in range(count)
        )
        return torch.stack(list(passes)).mean(dim=0)

    def _warn(self, pixels: FloatImage, mean: float | None, stds: Sequence[float | None]) -> None:
        told: set[str] = set()
        for image, std in zip(pixels, stds, strict=True):
            for doubt in noise_doubts(image, self.noise, mean=mean, std=std):
                if doubt not in told:
                    warnings.warn(doubt, stacklevel=3)
                told.add(doubt)

    def _added(self, noisy: Tensor, std: float | Tensor | None) -> tuple[Tensor, Tensor]:
        """Std of the noise to add, (N, 1, 1, 1), and of the noise that an image then has, (N,)."""
        assert self._recorruption is not None
        if std is None:
            low, high = self.noise.std_range if self.noise is not None else (0.0, 1.0)
            clip = self.noise is None or self.noise.clip
            std = low if low == high else _estimated(noisy, clip=clip)
        known = torch.as_tensor(std, dtype=torch.float32, device=noisy.device).expand(len(noisy))
        added = self._recorruption.strength * known
        return added.view(-1, 1, 1, 1), (known.square() + added.square()).sqrt()

    def network_inputs(
        self, noisy: Tensor, *, mean: float | Tensor | None = None, std: float | Tensor | None = None
    ) -> Tensor:
        """What the network is given for (N, 1, H, W): (N, 1 + K, H', W'), padded, with maps of what it is told.

        `mean` and `std` as for `denoise`; of a network that adds noise, what it is given without.
        """
        noisy, mean = self._with_trained_mean(noisy, mean)
        return self._inputs(noisy, mean, std)

    def _denoised(self, noisy: Tensor, *, mean: float | Tensor, std: float | Tensor | None) -> Tensor:
        height, width = noisy.shape[-2:]
        return self.network(self._inputs(noisy, mean, std))[..., :height, :width].contiguous()

    def _with_trained_mean(self, noisy: Tensor, mean: float | Tensor | None) -> tuple[Tensor, float | Tensor]:
        """Images shifted to the nearest mean that the network was trained on, clamped where the training's were.

        And that mean, one or (N,). None is the training's mean; UsageError is raised where that is not known.
        """
        if self.noise is None:
            if mean is None:
                raise UsageError("these weights do not say on which noise they were trained: give the noise's mean")
            return noisy, mean
        low, high = self.noise.mean_range
        if mean is None:
            mean = low if low == high else 0.0
        if isinstance(mean, Tensor):
            nearest: float | Tensor = mean.clamp(low, high)
            noisy = noisy + (nearest - mean).to(noisy).view(-1, 1, 1, 1)
        else:
            nearest = min(max(mean, low), high)
            noisy = noisy if nearest == mean else noisy + (nearest - mean)
        return noisy.clamp(0.0, 1.0) if self.noise.clip else noisy, nearest

    def _inputs(self, noisy: Tensor, mean: float | Tensor, std: float | Tensor | None) -> Tensor:
        """What the network is given, (N, 1 + K, H, W): the images, padded, and maps of what it is told of each."""
        return with_noise_maps(pad_to_multiple(noisy.float(), self.network.stride), self._told(noisy, mean, std))

    def _told(self, noisy: Tensor, mean: float | Tensor, std: float | Tensor | None) -> Tensor:
        """(N, K): the K numbers of each image's noise that the network takes as inputs."""
        told = []
        if self.config.channels_in > 1:
            told.append(torch.as_tensor(mean, dtype=torch.float32, device=noisy.device).expand(len(noisy)))
        if self.config.channels_in > 2:
            if std is None:
                clip = self.noise is None or self.noise.clip
                std = _estimated(noisy, clip=clip)
            told.append(torch.as_tensor(std, dtype=torch.float32, device=noisy.device).expand(len(noisy)))
        return torch.stack(told, dim=1) if told else noisy.new_empty((len(noisy), 0), dtype=torch.float32)


def _estimated(noisy: Tensor, *, clip: bool) -> Tensor:
    """(N,): the std of the noise of each image, from the image alone. ImageError where they are too small."""
    try:
        return torch.tensor([estimate_noise_std(image[0].cpu().numpy(), clip=clip) for image in noisy])
    except UsageError as error:
        raise ImageError(f"{error}; give its std for smaller ones") from None


def _field(number: int, noisy: Tensor) -> Tensor:
    """The `number`-th standard normal field (1, 1, H, W), the same for all images and always."""
    generator = np.random.Generator(np.random.Philox(key=number))
    values = generator.standard_normal(noisy.shape[-2:], dtype=np.float32)
    return torch.from_numpy(values)[None, None].to(noisy.device)
