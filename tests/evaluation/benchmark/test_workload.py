"""Counted operations against a count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from veilray.evaluation.benchmark.workload import training_operations
from veilray.models.build import build_model
from veilray.training.config import RunConfig


def _by_hand(config: RunConfig, size: tuple[int, int]) -> float:
    """Operations of all convolutions: one pass forward, and one each for the gradients of inputs and weights."""
    model = build_model(config.model).eval()
    total = 0.0
    first = True

    def count(module: nn.Conv2d | nn.ConvTranspose2d, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total, first
        pixels = (output if isinstance(module, nn.Conv2d) else inputs[0]).shape[-2:].numel()
        forward = 2 * module.weight.numel() * pixels  # of which a group sees only its own channels
        total += (2 if first else 3) * forward  # the image itself needs no gradient
        first = False

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(count)  # type: ignore[arg-type]
    with torch.no_grad():
        model(torch.zeros(1, 1, *size))
    return total


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "unetpp", "nafnet"])
def test_operations_are_those_of_the_convolutions(name: str) -> None:
    config = RunConfig.model_validate({"model": {"name": name, "width": 4, "depth": 3}, "launch": {"device": "cpu"}})
    for size in ((32, 32), (16, 48)):
        assert training_operations(config, size=size) == pytest.approx(_by_hand(config, size))


def test_counting_draws_no_random_numbers() -> None:
    config = RunConfig.model_validate({"model": {"width": 4, "depth": 3}})
    before = torch.get_rng_state()
    training_operations(config, size=(32, 32))
    assert torch.equal(torch.get_rng_state(), before)
