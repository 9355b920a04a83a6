"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

_Tensors = tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]
"""Averages, the values that they follow, and pairs of what is copied instead: counters."""


class WeightAverage:
    """A second network whose every floating-point tensor, running statistics included, is a running average.

    After t steps the decay is min(decay, (1 + t) / (10 + t)), so that short trainings are not ruled by the initial
    weights. With decay 0 there is no second network: `model` is the one being trained.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._decay = decay
        self.model = copy.deepcopy(model) if decay else model
        self._known: tuple[nn.Module, _Tensors] | None = None

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 1."""
        if not self._decay:
            return
        averaged, values, copied = self._tensors(model)
        for own, value in copied:
            own.copy_(value)
        torch._foreach_lerp_(averaged, values, 1.0 - min(self._decay, (1 + step) / (10 + step)))

    def _tensors(self, model: nn.Module) -> _Tensors:
        """The tensors of both networks, looked up once: they are only ever written into, never replaced."""
        if self._known is None or self._known[0] is not model:
            pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
            averaged = [own for own, value in pairs if value.is_floating_point()]
            values = [value for _, value in pairs if value.is_floating_point()]
            copied = [(own, value) for own, value in pairs if not value.is_floating_point()]
            self._known = model, (averaged, values, copied)
        return self._known[1]
