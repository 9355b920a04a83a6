"""A training run's whole configuration, read from TOML."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from veilray.errors import UsageError
from veilray.models.config import ModelConfig, fields_beside
from veilray.obfuscation.config import NoiseConfig
from veilray.training.faults import explain, faults

Loss = Literal["l1", "mse", "log_mse", "charbonnier", "ms_ssim_l1", "frequency", "perceptual", "adversarial"]
Objective = Literal[
    "auto",
    "supervised",
    "sure",
    "r2r",
    "noisier2noise",
    "censored_sure",
    "censored_r2r",
    "blind_spot",
    "neighbor2neighbor",
    "noise2noise",
]
RECORRUPTION: dict[str, tuple[float, int]] = {"r2r": (0.5, 8), "noisier2noise": (1.0, 1), "censored_r2r": (0.5, 8)}
"""Of the objectives that add noise: how much, and how many times at inference, where a configuration says nothing."""
PROBED: tuple[Objective, ...] = ("sure", "censored_sure")
"""Objectives that take differences of the network's output, for which half precision is too coarse."""
LOSS_WEIGHTS: dict[str, float] = {"ms_ssim_l1": 0.84, "frequency": 1.0, "perceptual": 0.02, "adversarial": 0.005}
"""Of what a loss adds to the error of pixels, where a configuration says nothing; the others add nothing."""
_ONLY_FOR = {
    "perceptual_sha256": "perceptual",
    "discriminator_width": "adversarial",
    "discriminator_rate": "adversarial",
}
"""Fields that one loss alone has a use for."""

SMALLEST_PERCEPTUAL = 32
"""Side in pixels below which AlexNet's last layer has no place left."""

PRESETS = Path(__file__).parent / "presets"
SCHEMA_VERSION = 1


class TrainConfig(BaseModel):
    """Objective, optimiser and schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=50, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=32, ge=1)
    """Images in an optimiser step, over all devices."""
    objective: Objective = "auto"
    """What a training goes by: clean images (`supervised`, with `loss`), or noisy ones alone. Of the latter, `sure`,
    `r2r` and `noisier2noise` are for noise that is not clamped, `censored_sure` and `censored_r2r` for clamped noise,
    `blind_spot` and `neighbor2neighbor` for both, `noise2noise` for two releases of the same images. `auto` takes
    `supervised` where clean images are there, else `censored_sure` or `sure`; the run's configuration says which."""
    probe_every: int = Field(default=2, ge=1, le=1024)
    """sure, censored_sure: the divergence is measured on every k-th image of a batch, and counts for all; 1 + 1/k is
    the work of a step, in that of a supervised one."""
    recorruption: float = Field(default=0.0, ge=0.0, le=4.0)
    """r2r, noisier2noise, censored_r2r: std of the noise that is added to the released image before the network sees
    it, as a multiple of the released noise's; if left out, 1 for `noisier2noise` and 0.5 for the others."""
    recorruptions: int = Field(default=0, ge=0, le=256)
    """r2r, noisier2noise, censored_r2r: times that it is added at inference, over which the output is averaged; if left
    out, 1 for `noisier2noise` and 8 for the others."""
    clean_share: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Share of a batch that comes from the clean public images of `--clean`, beside a release that holds none."""
    clean_digest: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """Digest of the cohort of `--clean`, which is filled in when a run begins."""
    second_digest: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """Digest of the release of `--second`, which is filled in when a run begins."""
    loss: Loss = "l1"
    """supervised: mean absolute error of pixels (`l1`), squared (`mse`), the logarithm of each image's mean of it
    (`log_mse`), or squared only where it is small (`charbonnier`); or the absolute error and what is added to it:
    multi-scale structural similarity (`ms_ssim_l1`), the error's Fourier transform (`frequency`), the distance of
    AlexNet features (`perceptual`), a discriminator's judgement of patches (`adversarial`). Validation, which chooses
    the weights to evaluate, is by the error of pixels alone: by the absolute one wherever something is added to it."""
    loss_weight: float = Field(default=0.0, ge=0.0, le=1000.0)
    """Weight of what the loss adds; if left out, 0.84 for `ms_ssim_l1` (which gives the absolute error the rest to 1),
    1 for `frequency`, 0.02 for `perceptual`, 0.005 for `adversarial`."""
    perceptual_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """perceptual: SHA-256 of AlexNet's file (`launch.perceptual_backbone`), which is filled in when a run begins."""
    discriminator_width: int = Field(default=32, ge=1, le=512)
    """adversarial: channels of the discriminator's first layer."""
    discriminator_rate: float = Field(default=1.0, gt=0.0)
    """adversarial: learning rate of the discriminator, as a multiple of the network's."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Optimiser: Adam, or Adam with decoupled weight decay."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that each batch goes through the network in, to save memory; the step is that of the whole batch, but batch
    normalisation sees one part at a time."""
    learning_rate: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate, before `learning_rate_scaling`."""
    learning_rate_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Multiplies the learning rate by batch_size / reference_batch_size (`linear`) or its square root (`sqrt`)."""
    reference_batch_size: int = Field(default=16, ge=1)
    """Batch size that `learning_rate` is meant for; used by `learning_rate_scaling` only."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled weight decay; used by adamw only."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up: constant, or falling to zero along a cosine."""
    warmup_steps: int = Field(default=100, ge=0)
    """Optimiser steps over which the learning rate rises linearly from zero."""
    ema_decay: float = Field(default=0.999, ge=0.0, lt=1.0)
    """Decay a step of the moving average of the weights, which is then what is evaluated; 0 turns it off."""
    clip_norm: float = Field(default=1.0, ge=0.0)
    """Largest L2 norm of the gradient; larger ones are scaled down to it; 0 turns it off."""
    validate_every: int = Field(default=1, ge=1)
    """Epochs from one validation to the next, each of which may choose the weights and writes a checkpoint; the last
    epoch always ends in one."""
    patience: int = Field(default=0, ge=0)
    """Stop after this many epochs without a better validation loss; 0 never stops early."""
    crop: int = Field(default=0, ge=0)
    """Side in pixels of the square that is cut at random from each training image; 0 takes whole images. Validation
    and test always see whole images."""
    flips: bool = False
    """Whether training images are mirrored left to right at random."""
    degradation: Literal["noise", "three-tasks"] = "noise"
    """What is done to training images: the noise; or, drawn for each image, the noise, JPEG compression, or downscaling
    and enlargement, the three tasks of DnCNN-3. Validation and test images get the noise."""
    start: str = ""
    """Weights to begin from instead of drawn ones: the name of a model that ships, a run folder (its best weights), an
    opened model or a .safetensors file, all of the very network that `[model]` describes."""
    start_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """SHA-256 of the starting weights, which is filled in when a run begins; going on with a run does not read them."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_by_loss_and_objective(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        strength, count = RECORRUPTION.get(str(values.get("objective", "auto")), (0.0, 0))
        weight = LOSS_WEIGHTS.get(str(values.get("loss", "l1")), 0.0)
        return {"loss_weight": weight, "recorruption": strength, "recorruptions": count, **values}

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> TrainConfig:
        if self.optimizer == "adam" and self.weight_decay > 0:
            raise ValueError("weight_decay needs optimizer = 'adamw'")
        if self.loss_weight and self.loss not in LOSS_WEIGHTS:
            users = ", ".join(f"'{loss}'" for loss in LOSS_WEIGHTS)
            raise ValueError(f"loss_weight needs a loss that adds something to pixels ({users}), not '{self.loss}'")
        if self.loss == "ms_ssim_l1" and self.loss_weight > 1:
            raise ValueError("loss_weight is a share from 0 to 1 for loss = 'ms_ssim_l1'")
        for name, loss in _ONLY_FOR.items():
            if self.loss != loss and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} needs loss = '{loss}'")
        if (self.objective in RECORRUPTION) != (self.recorruption > 0) or (self.recorruption > 0) != (
            self.recorruptions > 0
        ):
            users = ", ".join(f"'{objective}'" for objective in RECORRUPTION)
            raise ValueError(f"recorruption and recorruptions are positive for objective = {users}, and 0 for others")
        if self.start_sha256 and not self.start:
            raise ValueError("start_sha256 needs start")
        if self.loss == "perceptual" and 0 < self.crop < SMALLEST_PERCEPTUAL:
            raise ValueError(f"loss = 'perceptual' needs crops of {SMALLEST_PERCEPTUAL} pixels at least")
        return self

    def unused(self) -> set[str]:
        """Names of the fields that this objective has no use for."""
        unused = {name for name, loss in _ONLY_FOR.items() if self.loss != loss}
        unused |= set() if self.objective in ("auto", "supervised") else {"loss", "loss_weight"}
        unused |= set() if self.objective in PROBED else {"probe_every"}
        unused |= set() if self.objective in RECORRUPTION else {"recorruption", "recorruptions"}
        unused |= set() if self.clean_digest else {"clean_digest", "clean_share"}
        unused |= set() if self.second_digest else {"second_digest"}
        return unused if self.loss in LOSS_WEIGHTS else unused | {"loss_weight"}

    def validates_after(self, epoch: int) -> bool:
        """Whether epoch number `epoch`, counted from 1, ends in a validation."""
        return epoch % self.validate_every == 0 or epoch == self.epochs

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate of the whole batch, after `learning_rate_scaling`."""
        ratio = self.batch_size / self.reference_batch_size
        match self.learning_rate_scaling:
            case "none":
                return self.learning_rate
            case "linear":
                return self.learning_rate * ratio
            case "sqrt":
                return self.learning_rate * math.sqrt(ratio)


class LaunchConfig(BaseModel):
    """Where and in what arithmetic the training runs. `device`, `precision`, `layout`, `compile` and `compression`
    change how numbers are rounded, the others nothing of what is learnt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    setup: Literal["auto", "single", "dp", "ddp"] = "auto"
    """Set-up: `single`, one device; `dp`, one process that spreads each batch over its GPUs (nn.DataParallel); `ddp`,
    one process a device under torchrun (DistributedDataParallel). `auto` takes ddp under torchrun, else single."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device; `auto` takes CUDA, then MPS, then the CPU."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass; weights and optimiser stay fp32. fp16 scales the loss. `auto` takes
    bf16 where the device multiplies it natively, and fp32 elsewhere, where bf16 is emulated and ten times slower."""
    layout: Literal["auto", "channels_last", "contiguous"] = "auto"
    """Memory format of images: NHWC or NCHW. `auto` takes channels_last, except in fp32 on a CPU without
    AVX-512, where it is no faster."""
    perceptual_backbone: str = ""
    """File of AlexNet's convolutions, as .safetensors, for train.loss = 'perceptual'; here, because where it lies does
    not decide what is learnt: what it holds does, `train.perceptual_sha256`."""
    compile: bool = False
    """Whether the network goes through torch.compile."""
    prefetch: int = Field(default=0, ge=0, le=64)
    """Batches that a background thread prepares ahead of their steps, and as many threads in a validation, whose noise
    is drawn on the CPU; 0 prepares each when it is needed."""
    bucket_mb: float = Field(default=25.0, gt=0.0)
    """ddp: size in MiB of the parcels in which gradients cross ranks while the backward pass goes on."""
    compression: Literal["none", "bf16"] = "none"
    """ddp: whether gradients cross ranks as fp32 or rounded to bf16, which halves the bytes."""
    share_device: bool = False
    """ddp: whether ranks may share a GPU, over gloo; slower than one process, and meant for trying things out."""
    timeout_seconds: float = Field(default=600.0, gt=0.0)
    """ddp: longest time that a rank waits for the others before it gives up."""
    checkpoint_minutes: float = Field(default=5.0, gt=0.0)
    """Minutes between checkpoints inside an epoch; one is also written at the end of every epoch."""


class SplitConfig(BaseModel):
    """Which images train, validate and test."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Literal["cohort", "paper"] = "cohort"
    """`cohort` takes the patient-wise split of the cohort; `paper` splits 50/33/17 % by image, so that patients are
    shared between the sets, as in the released code."""
    seed: int = Field(default=0, ge=0)
    """Seed of the `paper` split; apart from the run's own, so that runs of several seeds share their test images."""


class EvaluateConfig(BaseModel):
    """How a run is scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unclamped_psnr: bool = False
    """Whether PSNR of the raw output is reported too, as in the paper."""
    noise_seed: int = Field(default=20_250, ge=0)
    """Seed of the validation and test noise, which is the same for every run that is compared."""


class RunConfig(BaseModel):
    """Everything that decides a run's result, apart from the data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=17, ge=0)
    """Seed of the initial weights, the order of images and the training noise."""
    split: SplitConfig = SplitConfig()
    noise: NoiseConfig = NoiseConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    launch: LaunchConfig = LaunchConfig()


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file or a shipped preset, such as `default`, with overrides such as `train.epochs=5`.

    Where they name another network than a preset's, `fields_beside` says what is left out. Raises UsageError for a
    missing file, bad TOML, an unknown key or a value of the wrong kind.
    """
    path = Path(source)
    if not path.is_file() and path.name == str(source) and path.name.removesuffix(".toml") in preset_names():
        path = preset_path(path.name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = ", ".join(preset_names())
        raise UsageError(f"no configuration file {path}; presets that ship: {names}") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    return parse_config(text, overrides, path=path)


def parse_config(text: str, overrides: Sequence[str] = (), *, path: Path) -> RunConfig:
    """The configuration in a TOML text that was read from `path`, with overrides; UsageError as `load_config`."""
    try:
        values: dict[str, Any] = tomllib.loads(text)
        own: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    asked: dict[str, Any] = {}
    for override in overrides:
        apply_override(asked, override)
    if path.parent == PRESETS:
        values["model"] = fields_beside(asked.get("model"), preset=values["model"])
    for override in overrides:
        apply_override(values, override)
    version = values.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise UsageError(f"{path} has schema version {version}; this Veilray reads {SCHEMA_VERSION}")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(explain(faults(error), _faults_of(own), overrides, path=path)) from None


def preset_names() -> list[str]:
    """Names of the configurations in the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset_path(name: str | Path) -> Path:
    """File of a shipped configuration; `name` may end in .toml."""
    return PRESETS / f"{Path(name).stem}.toml"


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as TOML: every field, defaults included."""
    return tomlkit.dumps({"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")})


def apply_override(values: dict[str, Any], override: str) -> None:
    """Put `section.key=value` into nested settings, in place; UsageError where it is written in another way."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {override}: write it as section.key=value, for example train.epochs=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, last = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UsageError(f"--set {override}: {section} is not a section")
    values[last] = value


def _faults_of(values: dict[str, Any]) -> dict[str, str]:
    try:
        RunConfig.model_validate({name: value for name, value in values.items() if name != "schema_version"})
    except ValidationError as error:
        return faults(error)
    return {}
