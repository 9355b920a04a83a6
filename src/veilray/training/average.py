"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """A second network whose every floating-point tensor, running statistics included, is a running average.

    After t steps the decay is min(decay, (1 + t) / (10 + t)), so that short trainings are not ruled by the initial
    weights. With decay 0 there is no second network: `model` is the one being trained.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._decay = decay
        self.model = copy.deepcopy(model) if decay else model

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 1."""
        if not self._decay:
            return
        averaged, values = [], []
        for own, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if value.is_floating_point():
                averaged.append(own)
                values.append(value)
            else:
                own.copy_(value)
        torch._foreach_lerp_(averaged, values, 1.0 - min(self._decay, (1 + step) / (10 + step)))
