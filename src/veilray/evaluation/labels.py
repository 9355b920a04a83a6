"""Names for the arms of a comparison: short, and different where the configurations differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from veilray.evaluation.results import Summary
from veilray.models.config import TITLES
from veilray.obfuscation.config import NoiseConfig
from veilray.training.config import RunConfig

Settings = dict[str, str]

# They decide which figures are written or how fast, not what was learnt; the noise level and the device are added back
# below in the form in which they tell runs apart.
_LEFT_OUT = {
    "schema_version",
    "seed",
    "evaluate.unclamped_psnr",
    "evaluate.noise_seed",
    "launch.bucket_mb",
    "launch.checkpoint_minutes",
    "launch.device",
    "launch.perceptual_backbone",
    "launch.share_device",
    "launch.timeout_seconds",
    "train.start",
    "noise.mean",
    "noise.std",
    "noise.clip",
}

_PHRASES: dict[str, str | dict[str, str]] = {
    "model.depth": "depth {}",
    "model.norm": "{} normalisation",
    "model.block": "{} blocks",
    "model.residual": {"yes": "residual"},
    "model.deep_supervision": {"yes": "deep supervision"},
    "model.inputs": "told {}",
    "model.fold": "folded by {}",
    "model.layers": "{} layers",
    "model.stages": "{} stages",
    "noise.fresh": {"no": "fixed noise"},
    "noise.training": {"the noise of the test": "", "": "trained at {}"},
    "train.objective": {"supervised": ""},
    "train.clean_digest": {"none": "", "": "with clean images {}"},
    "train.clean_share": "{} of a batch clean",
    "train.second_digest": {"none": "", "": "second release {}"},
    "train.recorruption": {"0.0": "", "": "noise added at {}"},
    "train.recorruptions": {"0": "", "": "{} times at inference"},
    "train.probe_every": "probe on every {} images",
    "train.loss": {
        "l1": "L1",
        "mse": "MSE",
        "log_mse": "log MSE",
        "charbonnier": "Charbonnier",
        "ms_ssim_l1": "MS-SSIM + L1",
        "frequency": "L1 + frequency",
        "perceptual": "L1 + perceptual",
        "adversarial": "L1 + adversarial",
    },
    "train.loss_weight": {"0.0": "", "": "weight {}"},
    "train.perceptual_sha256": {"none": "", "": "AlexNet {}"},
    "train.start_sha256": {"none": "", "": "from weights {}"},
    "train.discriminator_width": "discriminator of width {}",
    "train.discriminator_rate": "discriminator at {} times the rate",
    "train.degradation": {"noise": "noise alone", "three-tasks": "three tasks"},
    "train.optimizer": {"adam": "Adam", "adamw": "AdamW"},
    "train.epochs": "{} epochs",
    "train.batch_size": "batch {}",
    "train.accumulate": {"1": "", "": "in {} parts"},
    "train.learning_rate": "rate {}",
    "train.learning_rate_scaling": {"none": "rate not scaled", "": "{} scaling of the rate"},
    "train.reference_batch_size": "rate for batch {}",
    "train.weight_decay": "weight decay {}",
    "train.schedule": "{} rate",
    "train.warmup_steps": "{} warm-up steps",
    "train.ema_decay": {"0.0": "no EMA", "": "EMA {}"},
    "train.clip_norm": {"0.0": "no clipping", "": "clipped at {}"},
    "train.validate_every": {"1": "validated every epoch", "": "validated every {} epochs"},
    "train.patience": "patience {}",
    "train.crop": {"0": "whole images", "": "crops of {} px"},
    "train.flips": {"yes": "flips"},
    "launch.setup": "{}",
    "launch.device": "on {}",
    "launch.precision": "{}",
    "launch.layout": {"contiguous": "NCHW", "channels_last": "NHWC"},
    "launch.compile": {"yes": "compiled"},
    "launch.compression": {"none": "", "": "gradients sent in {}"},
    "launch.prefetch": {"0": "", "": "{} batches ahead"},
    "split.rule": "{} split",
    "split.seed": "split seed {}",
    "data.trained_on": "trained on {}",
}


def flatten(config: RunConfig) -> Settings:
    """Every field of a configuration by its dotted key, as text."""
    flat: Settings = {}
    for key, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": as_text(inner) for name, inner in value.items()}
        else:
            flat[key] = as_text(value)
    return flat


def as_text(value: Any) -> str:
    """A setting as a reader expects it: yes or no, a range with a dash."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return "–".join(str(item) for item in value)
    return str(value)


def settings_of(config: RunConfig, summary: Summary, environment: dict[str, Any]) -> Settings:
    """What tells a run's arm from others: settings without seed and noise level, device and training data."""
    kept = {key: value for key, value in flatten(config).items() if key not in _LEFT_OUT}
    kept["train.perceptual_sha256"] = config.train.perceptual_sha256[:12] or "none"
    for name in ("clean_digest", "second_digest"):
        kept[f"train.{name}"] = getattr(config.train, name)[:12] or "none"
    kept["train.start_sha256"] = config.train.start_sha256[:12] or "none"
    kept["noise.training"] = training_noise(config.noise, summary.noise)
    if kept["launch.setup"] == "auto":  # it took what the machine and the launcher asked for
        kept["launch.setup"] = str(environment.get("setup", "auto"))
    kept["launch.device"] = device_name(str(environment.get("device", "unknown device")))
    kept["data.trained_on"] = str(environment.get("cohort_digest", "unknown data"))[:12]
    return kept


def training_noise(training: NoiseConfig, test: NoiseConfig) -> str:
    """The noise of the training where it is not that of the test, which makes it a setting of the model."""
    if (training.std, training.mean, training.clip) == (test.std, test.mean, test.clip):
        return "the noise of the test"
    return describe_noise(training)


def describe_noise(noise: NoiseConfig) -> str:
    """A noise level in words, such as `20 % (mean 0.1, clamped)`; per cent of the [0, 1] range, as in the paper."""
    return f"{percent(noise)} (mean {noise.mean_text}, {'clamped' if noise.clip else 'not clamped'})"


def percent(noise: NoiseConfig) -> str:
    """The standard deviation in per cent of the [0, 1] range."""
    low, high = (f"{100 * std:.6g}" for std in noise.std_range)
    return f"{low}\N{NO-BREAK SPACE}%" if low == high else f"{low}–{high}\N{NO-BREAK SPACE}%"


def noise_labels(noises: Sequence[NoiseConfig]) -> list[str]:
    """A label for each of several different noises: the per cent alone where it tells them apart."""
    short = [percent(noise) for noise in noises]
    return short if len(set(short)) == len(short) else [describe_noise(noise) for noise in noises]


def setup_of(settings: Settings) -> str:
    """Hardware and arithmetic, for the set-up column: `CPU, bf16`."""
    launch = {"single": ""}.get(settings["launch.setup"], f" {settings['launch.setup']}")
    return f"{settings['launch.device']}{launch}, {settings['launch.precision']}"


def device_name(device: str) -> str:
    """The kind of a torch device in words."""
    return {"cpu": "CPU", "cuda": "1 GPU", "mps": "1 GPU (MPS)"}.get(device.partition(":")[0], device)


def arm_labels(arms: Sequence[Settings]) -> list[str]:
    """One label for each of several different settings: architecture and width, then as little as sets them apart."""
    labels = [f"{TITLES.get(arm['model.name'], arm['model.name'])}, width {arm['model.width']}" for arm in arms]
    keys = [key for key in _PHRASES if any(key in arm for arm in arms)]
    keys += sorted({key for arm in arms for key in arm} - set(keys) - {"model.name", "model.width"})
    for key in keys:
        for label in {label for label in labels if labels.count(label) > 1}:
            alike = [index for index, other in enumerate(labels) if other == label]
            if len({arms[index].get(key) for index in alike}) > 1:
                for index in alike:
                    labels[index] = ", ".join(filter(None, [label, phrase(key, arms[index].get(key, "none"))]))
    return labels


def differing(first: Settings, second: Settings) -> tuple[str, ...]:
    """Keys of the settings in which two arms differ, in the order of the configuration."""
    return tuple(key for key in [*first, *(set(second) - set(first))] if first.get(key) != second.get(key))


def phrase(key: str, value: str) -> str:
    """A setting in a word or two, by its key in the configuration: `batch 32`; empty where it goes without saying."""
    form = _PHRASES.get(key, f"{key} {{}}")
    if isinstance(form, dict):
        form = form.get(value, form.get("", "" if value in ("yes", "no") else "{}"))
    return form.format(value)
