"""What one optimiser step works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from veilray.errors import CohortError
from veilray.models.config import ModelConfig
from veilray.models.layers import with_noise_maps
from veilray.training.draws import Drawn
from veilray.training.sets import Rows


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images of one step: (N, 1, H, W), float32; clean ones in [0, 1], `noisy` too where the noise is clamped."""

    rows: Rows
    noisy: Tensor
    known: Tensor
    """(N, 2), float32: mean and standard deviation of each image's noise."""
    originals: Tensor | None
    """The clean images; None where the data hold none."""
    drawn: Drawn | None = None
    """What an objective that sees no clean image takes beside the noisy ones; None for others."""
    public: Batch | None = None
    """Clean public images beside those of a release that holds none; None where there are none."""

    @property
    def clean(self) -> Tensor:
        """The clean images, (N, 1, H, W); CohortError where the data hold none."""
        if self.originals is None:
            raise CohortError("these data hold no clean images to compare with; evaluate where the originals are")
        return self.originals

    def network_input(self, config: ModelConfig) -> Tensor:
        """(N, C, H, W): the noisy images, with a constant map for each thing the network is told of their noise."""
        return with_noise_maps(self.noisy, self.known[:, : config.channels_in - 1])

    def arguments(self, config: ModelConfig) -> tuple[Tensor | Drawn, ...]:
        """What the training's objective takes: network input and clean images, or what it makes do without them."""
        if self.drawn is None:
            return self.network_input(config), self.clean
        own = self.noisy, self.known, self.drawn
        return own if self.public is None else (*own, self.public.network_input(config), self.public.clean)


@dataclass(frozen=True, kw_only=True)
class TrainingParts:
    """What one rank does of one optimiser step."""

    images: int
    """In the whole batch, over all parts and ranks."""
    parts: list[Batch]
    """As many on every rank."""


def concatenated(batches: Sequence[Batch]) -> Batch:
    """Batches of images with their clean ones as one."""
    return Batch(
        rows=np.concatenate([batch.rows for batch in batches]),
        noisy=torch.cat([batch.noisy for batch in batches]),
        known=torch.cat([batch.known for batch in batches]),
        originals=torch.cat([batch.clean for batch in batches]),
    )
