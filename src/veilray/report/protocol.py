"""The settings, data and environment behind the figures, as rows of text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veilray.evaluation.comparison import Comparison, Run
from veilray.evaluation.labels import describe_noise, flatten
from veilray.models.config import TITLES, ModelConfig
from veilray.report.text import listed, number
from veilray.training.config import RunConfig, dump_config

_NAMES = {
    "noise.levels": "Noise",
    "noise.training": "Training noise",
    "noise.fresh": "Training noise drawn anew every epoch",
    "noise.seed": "Seed of the validation and test noise",
    "model.name": "Architecture",
    "model.width": "Channels of the first level",
    "model.depth": "Levels",
    "model.norm": "Normalisation",
    "model.block": "Block",
    "model.residual": "Output added to the input",
    "model.deep_supervision": "Every head trained",
    "model.inputs": "Inputs of the network",
    "model.fold": "Side of the squares folded into channels, pixels",
    "model.layers": "Convolutions",
    "model.stages": "Stages of diffusion",
    "model.parameters": "Parameters",
    "data.trained_on": "Training cohort (digest)",
    "split.rule": "Split",
    "split.seed": "Seed of the paper's split",
    "train.epochs": "Epochs",
    "train.batch_size": "Images in a step, over all devices",
    "train.accumulate": "Parts of a step, one after another",
    "train.objective": "Objective",
    "train.clean_digest": "Clean public cohort (digest)",
    "train.clean_share": "Share of clean public images in a batch",
    "train.second_digest": "Second release (digest)",
    "train.recorruption": "Noise added in training, as a multiple",
    "train.recorruptions": "Times that noise is added at inference",
    "train.probe_every": "Images to one probe of the divergence",
    "train.loss": "Loss",
    "train.loss_weight": "Weight of what the loss adds to pixels",
    "train.perceptual_sha256": "AlexNet's file (SHA-256)",
    "train.start_sha256": "Weights at the start (SHA-256)",
    "train.discriminator_width": "Channels of the discriminator's first layer",
    "train.discriminator_rate": "Discriminator's learning rate, as a multiple",
    "train.optimizer": "Optimiser",
    "train.learning_rate": "Learning rate",
    "train.learning_rate_scaling": "Learning rate scaled by the batch",
    "train.reference_batch_size": "Batch that the learning rate is given for",
    "train.weight_decay": "Weight decay",
    "train.schedule": "Schedule",
    "train.warmup_steps": "Warm-up steps, at most a tenth of all",
    "train.ema_decay": "Decay of the averaged weights",
    "train.clip_norm": "Largest norm of the gradient",
    "train.validate_every": "Epochs from one validation to the next",
    "train.patience": "Patience, epochs",
    "train.crop": "Random square crop, pixels",
    "train.flips": "Mirrored at random",
    "train.degradation": "Degradation of training images",
    "train.seeds": "Seeds",
    "train.checkpoint": "Weights evaluated",
    "launch.device": "Device",
    "launch.setup": "Set-up",
    "launch.precision": "Arithmetic",
    "launch.layout": "Memory format",
    "launch.compile": "Compiled",
    "launch.prefetch": "Batches prepared ahead",
    "launch.compression": "Compression of the gradients on their way",
}
_VALUES = {
    "model.name": TITLES,
    "train.objective": {
        "supervised": "the clean images",
        "sure": "noisy images alone, by Stein's unbiased risk estimate",
        "r2r": "noisy images alone, recorrupted",
        "noisier2noise": "noisy images alone, from noisier ones",
        "censored_sure": "noisy images alone, by Stein's estimate for clamped noise",
        "censored_r2r": "noisy images alone, recorrupted, by the likelihood of clamped noise",
        "blind_spot": "noisy images alone, by masked pixels",
        "neighbor2neighbor": "noisy images alone, by neighbouring pixels",
        "noise2noise": "two noisy releases",
    },
    "train.loss": {
        "l1": "L1, mean absolute error",
        "mse": "mean squared error",
        "log_mse": "logarithm of each image's mean squared error",
        "charbonnier": "Charbonnier, the absolute error smoothed below 0.001",
        "ms_ssim_l1": "multi-scale SSIM and L1",
        "frequency": "L1, and L1 of the error's Fourier transform",
        "perceptual": "L1, and the distance of AlexNet features",
        "adversarial": "L1, and a discriminator's judgement of patches",
    },
    "train.degradation": {"noise": "the noise", "three-tasks": "noise, JPEG compression or enlargement, drawn evenly"},
    "train.optimizer": {"adam": "Adam", "adamw": "AdamW"},
    "split.rule": {"cohort": "patient-wise, from the cohort", "paper": "50/33/17 % by image, as in the paper"},
    "launch.setup": {"single": "one device"},
    "launch.layout": {"contiguous": "NCHW", "channels_last": "channels last (NHWC)"},
}
_OFF_AT_ZERO = {
    "train.clip_norm",
    "train.crop",
    "train.ema_decay",
    "train.patience",
    "train.warmup_steps",
    "train.weight_decay",
}
_SECTIONS = {
    "noise": "Noise",
    "model": "Network",
    "train": "Training",
    "launch": "Computation",
    "data": "Data",
    "split": "Data",
}
_ENVIRONMENT = {
    "device_name": "Hardware",
    "threads": "CPU threads",
    "platform": "Operating system",
    "python": "Python",
    "torch": "PyTorch",
    "veilray": "Veilray",
    "git_commit": "Source revision",
    "started": "Started",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row: a name, and its value or, where the arms differ, each value with those that have it."""

    name: str
    values: tuple[tuple[str, str], ...]
    """(value, whose): `whose` is empty where all agree."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One row of the table of sets."""

    name: str
    images: str
    patients: str
    """Empty where no run recorded it."""


def protocol(comparison: Comparison) -> dict[str, list[Setting]]:
    """Every setting of the runs by section, defaults included."""
    keys = dict.fromkeys(key for arm in _models(comparison).values() for key in arm)
    sections: dict[str, list[Setting]] = {}
    for key in [*_NAMES, *(key for key in keys if key not in _NAMES)]:
        values = {label: arm[key] for label, arm in _models(comparison).items() if key in arm}
        if values:
            section = key.partition(".")[0]
            heading = _SECTIONS.get(section, section.capitalize())
            sections.setdefault(heading, []).append(_row(key, values))
    return sections


def data_sets(comparison: Comparison) -> list[DataSet]:
    """The sets as the runs recorded them; several numbers where the runs differ."""
    sets = []
    for name in ("train", "validation", "test"):
        images = _recorded(comparison, f"n_{name}")
        if images:
            title = {"train": "Training"}.get(name, name.capitalize())
            sets.append(DataSet(name=title, images=images, patients=_recorded(comparison, f"n_{name}_patients")))
    return sets


def patients_unknown(comparison: Comparison) -> int:
    """Images whose patient nobody knew, so that nothing is known of patients in two sets either."""
    return max([run.environment.get("patients_unknown", 0) for run in comparison.runs], default=0)


def shared_patients(comparison: Comparison) -> int | None:
    """The largest number of patients that a run's sets share; None where no run recorded it."""
    counts = [run.environment.get("shared_patients") for run in comparison.runs]
    return max((int(count) for count in counts if count is not None), default=None)


def environment(comparison: Comparison) -> list[Setting]:
    """Hardware, versions and source revision, each value once with the runs that had it."""
    names = run_names(comparison.runs)
    rows = []
    for key, name in _ENVIRONMENT.items():
        values = {names[run.folder]: str(run.environment[key]) for run in comparison.runs if run.environment.get(key)}
        if values:
            rows.append(_row(key, values, name=name))
    evaluated = {names[run.folder]: run.summary.device for run in comparison.runs}
    return [*rows, _row("evaluated", evaluated, name="Evaluated on")]


def configurations(comparison: Comparison) -> list[tuple[str, str]]:
    """(noise level and arm, resolved configuration as TOML) of the first run of every arm.

    A seed of test noise is left out where none was drawn with it, because the images came with theirs.
    """

    def shown(config: RunConfig, *, seeded: bool) -> str:
        lines = dump_config(config).splitlines(keepends=True)
        return "".join(line for line in lines if seeded or not line.startswith("noise_seed "))

    return [
        (f"{arm.label}, noise {level.label}", shown(arm.runs[0].config, seeded=level.test_noise_seed is not None))
        for level in comparison.levels
        for arm in level.models
    ]


def run_names(runs: Iterable[Run]) -> dict[Path, str]:
    """Short names of the run folders, relative to the folder they share: a report travels, home folders need not."""
    folders = [run.folder for run in runs]
    absolute = [folder.absolute() for folder in folders]
    shared = Path(os.path.commonpath([folder.parent for folder in absolute]))
    return {folder: full.relative_to(shared).as_posix() for folder, full in zip(folders, absolute, strict=True)}


def _models(comparison: Comparison) -> dict[str, dict[str, str]]:
    """arm -> every setting, those that belong to the whole comparison included."""
    noise = listed([describe_noise(level.noise) for level in comparison.levels])
    seeds = dict.fromkeys(level.test_noise_seed for level in comparison.levels)
    noise_seed = listed(["none: the noise is the release's" if seed is None else str(seed) for seed in seeds])
    arms: dict[str, dict[str, str]] = {}
    for level in comparison.levels:
        for arm in level.models:
            flat = {key: value for key, value in flatten(arm.runs[0].config).items() if key in arm.settings}
            settings = flat | arm.settings
            settings = {key: value for key, value in settings.items() if key not in _unused(arm.runs[0].config)}
            settings |= {"noise.levels": noise, "noise.seed": noise_seed}
            settings["train.seeds"] = listed([str(run.config.seed) for run in arm.runs])
            settings["train.checkpoint"] = "of the epoch with the lowest validation loss"
            parameters = arm.runs[0].environment.get("parameters")
            if parameters is not None:
                settings["model.parameters"] = _count(parameters)
            arms.setdefault(arm.label, settings)
    return arms


def _unused(config: RunConfig) -> set[str]:
    """Keys of settings that the network and the objective have no use for."""
    model = set(ModelConfig.model_fields) - {"name", *config.model.options()}
    unused = {f"model.{name}" for name in model} | {f"train.{name}" for name in config.train.unused()}
    if config.split.rule != "paper":
        unused.add("split.seed")
    if config.train.learning_rate_scaling == "none":
        unused.add("train.reference_batch_size")
    return unused


def _row(key: str, values: Mapping[str, str], *, name: str = "") -> Setting:
    holders: dict[str, list[str]] = {}
    for label, value in values.items():
        holders.setdefault(_value(key, value), []).append(label)
    alike = len(holders) == 1
    return Setting(
        name=name or _NAMES.get(key, key),
        values=tuple((value, "" if alike else "; ".join(labels)) for value, labels in holders.items()),
    )


def _value(key: str, value: str) -> str:
    if key in _OFF_AT_ZERO and float(value) == 0:
        return "off"
    return _VALUES.get(key, {}).get(value, value)


def _recorded(comparison: Comparison, key: str) -> str:
    return listed([_count(value) for value in _distinct(run.environment.get(key) for run in comparison.runs)])


def _count(value: Any) -> str:
    return number(int(value), 0)


def _distinct(values: Iterable[Any]) -> list[str]:
    return [str(value) for value in dict.fromkeys(value for value in values if value is not None)]
