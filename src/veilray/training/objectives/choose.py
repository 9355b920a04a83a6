"""Which objective a training has: the one that its configuration names, or the one that its data allow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from veilray.errors import UsageError
from veilray.training.config import LOSS_WEIGHTS, Objective, RunConfig

UNCLAMPED: tuple[Objective, ...] = ("sure", "r2r", "noisier2noise")
"""Objectives whose proofs need Gaussian noise that nothing has cut off."""
CLAMPED: tuple[Objective, ...] = ("censored_sure", "censored_r2r")
"""Objectives made for the clamp; those that are in neither list hold with it and without."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An objective, and why it was taken."""

    objective: Objective
    why: str


def choose_objective(config: RunConfig, *, clip: bool, clean: bool, second: bool, path: Path) -> Choice:
    """The objective of a training on the data at `path`.

    `clip`: whether their noise is clamped. `clean`: whether clean images are there. `second`: whether a second release
    of the same images is. Raises UsageError for an objective that is not valid for them, with the reason.
    """
    wanted = config.train.objective
    clamp = "the noise is clamped" if clip else "the noise is not clamped"
    if wanted == "auto":
        chosen: Objective = "supervised" if clean else "censored_sure" if clip else "sure"
        why = "the data hold clean images" if clean else f"{path} holds noisy images alone, and {clamp}"
        choice = Choice(objective=chosen, why=why)
    else:
        choice = Choice(objective=wanted, why="the configuration asks for it")
    if second != (choice.objective == "noise2noise"):
        raise UsageError(
            "train.objective = 'noise2noise' and a second release (--second) go together: give both, or neither"
        )
    _check(choice.objective, config, clip=clip, clean=clean, path=path)
    return choice


def _check(objective: Objective, config: RunConfig, *, clip: bool, clean: bool, path: Path) -> None:
    train = config.train
    if objective == "supervised":
        if not clean:
            raise UsageError(
                f"train.objective = 'supervised' needs clean images, and {path} holds none: "
                "set train.objective = 'auto', or ask for a release made with --pairs"
            )
        return
    if objective in UNCLAMPED and clip:
        raise UsageError(
            f"train.objective = '{objective}' holds for noise that is not clamped, and that of {path} is: there its "
            "estimate is biased; set train.objective = 'auto'"
        )
    if objective in CLAMPED and not clip:
        raise UsageError(
            f"train.objective = '{objective}' is for clamped noise, and that of {path} is not: it would take all "
            "that lies outside [0, 1] for clamped; set 'sure', or 'auto'"
        )
    if train.loss in LOSS_WEIGHTS:
        raise UsageError(
            f"train.loss = '{train.loss}' compares with clean images, and train.objective = '{objective}' sees none: "
            "set train.loss = 'l1'"
        )
    if train.degradation != "noise":
        raise UsageError(f"train.degradation = '{train.degradation}' needs train.objective = 'supervised'")
    if config.model.deep_supervision:
        raise UsageError(
            f"model.deep_supervision is for train.objective = 'supervised', not '{objective}': set it to false"
        )


def with_objective(config: RunConfig, choice: Choice) -> RunConfig:
    """The configuration with `auto` replaced by what was chosen."""
    return config.model_copy(update={"train": config.train.model_copy(update={"objective": choice.objective})})
