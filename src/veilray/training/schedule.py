"""Learning rate as a function of the optimiser step."""

from __future__ import annotations

import math

from veilray.training.config import TrainConfig


def learning_rate(config: TrainConfig, *, step: int, total_steps: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then constant or a cosine down to zero.

    The warm-up is cut to a tenth of the training where that is shorter.
    """
    warmup = min(config.warmup_steps, total_steps // 10)
    if step < warmup:
        return config.peak_learning_rate * (step + 1) / warmup
    match config.schedule:
        case "constant":
            return config.peak_learning_rate
        case "cosine":
            done = (step - warmup) / max(1, total_steps - warmup)
            return config.peak_learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
