"""Noise levels that a network is scored at, other than the noise of its own configuration."""

from __future__ import annotations

from itertools import product

import numpy as np
from pydantic import ValidationError

from veilray.errors import UsageError
from veilray.inference.doubts import noise_doubts
from veilray.obfuscation.config import NoiseConfig
from veilray.training.config import RunConfig
from veilray.training.sets import SMALLEST

MOST = 50


def parse_levels(stds: str, *, mean: float | None, trained: NoiseConfig) -> list[NoiseConfig]:
    """One noise for each of the standard deviations in `stds`, with commas between, ascending.

    `mean` is by default the one that the network was `trained` on; clamping is as there. Raises UsageError for what is
    no number, or out of range, and where the training had a range of means and none is given.
    """
    if mean is None:
        low, high = trained.mean_range
        if low != high:
            raise UsageError(f"the network was trained on means of {trained.mean_text}: say --mean")
        mean = low
    levels = []
    for text in (part.strip() for part in stds.split(",")):
        try:
            levels.append(NoiseConfig(mean=mean, std=float(text), clip=trained.clip))
        except ValidationError:
            raise UsageError(
                f"noise of mean {mean:g} and std {text}: give a std above 0 and a mean in [-1, 1]"
            ) from None
        except ValueError:
            raise UsageError(f"--std {stds}: write standard deviations with commas between, such as 0.1,0.2") from None
    levels.sort(key=lambda noise: noise.std_range)
    if len({level_name(noise) for noise in levels}) != len(levels) or len(levels) > MOST:
        raise UsageError(f"--std {stds}: name each standard deviation once, and no more than {MOST}")
    return levels


def level_name(noise: NoiseConfig) -> str:
    """Name of the folder of a noise level's results: `std-0.2-mean-0.1`."""
    return f"std-{noise.std_text}-mean-{noise.mean_text}".replace(" ", "-") + ("" if noise.clip else "-unclamped")


def noise_note(title: str, *, trained: NoiseConfig, scored: NoiseConfig) -> str:
    """That a network is scored on noise far from its training's; empty where `veilray denoise` has no doubts."""
    told = np.empty((0, 0), dtype=np.float32)  # nothing is estimated from pixels where mean and std are known
    ends = product(scored.mean_range, scored.std_range)
    if not any(noise_doubts(told, trained, mean=mean, std=std) for mean, std in ends):
        return ""
    return (
        f"{title} was trained on noise of std {trained.std_text} and mean {trained.mean_text}, and scored on noise of "
        f"std {scored.std_text} and mean {scored.mean_text}, which is far from that."
    )


def at_noise(config: RunConfig, noise: NoiseConfig) -> RunConfig:
    """A run's configuration with another noise, for scoring alone."""
    return for_scoring(config.model_copy(update={"noise": noise}))


def for_scoring(config: RunConfig) -> RunConfig:
    """A run's configuration for data that need not fit its training: images are scored whole, whatever it cut out.

    Nor does it matter by which objective it was trained, or what stood beside its data then.
    """
    own = {"crop": SMALLEST, "objective": "auto", "clean_digest": "", "second_digest": ""}
    return config.model_copy(update={"train": config.train.model_copy(update=own)})
