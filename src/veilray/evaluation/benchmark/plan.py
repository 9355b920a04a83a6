"""Benchmark plans: which trainings a benchmark consists of, read from TOML and multiplied out."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from veilray.errors import UsageError, first_fault
from veilray.files import write_text
from veilray.obfuscation.config import Std
from veilray.training.config import RunConfig, apply_override, load_config
from veilray.training.launch import resolved

PLANS = Path(__file__).parent / "plans"
PLAN_FILE, BASE_FILE = "plan.toml", "base.toml"
SCHEMA_VERSION = 1

SETTING_OF = {
    "model": "model.name",
    "noise": "noise.std",
    "setup": "launch.setup",
    "precision": "launch.precision",
    "layout": "launch.layout",
    "compile": "launch.compile",
    "prefetch": "launch.prefetch",
}
"""The setting that a factor varies, by the factor's name, in the order in which factors multiply out."""

SINGLE = "single"
"""The level of the factor `setup` that all others are held against: one device."""

_SETUP = re.compile(r"single|(?:dp|ddp):[1-9]\d{0,3}")


def _checked_setup(text: str) -> str:
    if not _SETUP.fullmatch(text):
        raise ValueError("write a set-up as 'single', 'dp:DEVICES' or 'ddp:DEVICES', such as 'ddp:2'")
    return text


Setup = Annotated[str, AfterValidator(_checked_setup)]


class Factors(BaseModel):
    """The levels of every factor; a factor without levels stays as in the base configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: tuple[Literal["unet", "unetpp"], ...] = ()
    """Architectures."""
    noise: tuple[Std | tuple[Std, Std], ...] = ()
    """Standard deviations of the noise in units of the [0, 1] range, or ranges [low, high]."""
    setup: tuple[Setup, ...] = ()
    """`single`, `dp:N` (nn.DataParallel over N GPUs) or `ddp:N` (N processes, one a device)."""
    precision: tuple[Literal["fp32", "fp16", "bf16"], ...] = ()
    """Arithmetic of the forward and backward pass."""
    layout: tuple[Literal["contiguous", "channels_last"], ...] = ()
    """Memory format: NCHW or NHWC."""
    compile: tuple[bool, ...] = ()
    """Whether the network goes through torch.compile."""
    prefetch: tuple[Annotated[int, Field(ge=0, le=64)], ...] = ()
    """Loader: batches prepared ahead in a background thread; 0 prepares each when its step begins."""

    @field_validator("*")
    @classmethod
    def _levels_differ(cls, levels: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(levels)) != len(levels):
            raise ValueError("a level is given twice")
        return levels


class Adjustment(BaseModel):
    """Settings that go with certain levels, such as the larger batch that the paper took on two devices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    when: dict[str, str] = Field(min_length=1)
    """Factor -> level, both as text; all must hold."""
    settings: dict[str, Any] = Field(min_length=1)
    """Settings by section, as in a configuration file."""

    @field_validator("when")
    @classmethod
    def _factors_exist(cls, when: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(when.keys() - SETTING_OF.keys()):
            raise ValueError(f"no factor {unknown[0]!r}; factors: {', '.join(SETTING_OF)}")
        return when


class BenchmarkPlan(BaseModel):
    """A factorial experiment: every combination of the factors' levels, once for each seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    """What the report is headed with."""
    base: str = "default"
    """Configuration that the settings start from: a shipped one, or a file beside the plan."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(17,), min_length=1)
    """Seeds; all combinations are run with the first before any with the second, so that each seed is a whole
    replicate."""
    settings: dict[str, Any] = {}
    """Settings over the base, by section, as in a configuration file."""
    factors: Factors = Factors()
    adjust: tuple[Adjustment, ...] = ()
    """Settings that go with certain levels; later ones win."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed is given twice")
        return seeds


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training of a plan."""

    levels: dict[str, str]
    """Level of every factor as text, those that the plan does not vary included."""
    seed: int
    devices: int
    """Devices that the set-up asks for."""
    config: RunConfig
    """Resolved for the device: it holds no `auto`."""

    @property
    def name(self) -> str:
        """Folder of the run: what it really is, adjustments included, and the same when other levels join the plan."""
        launch = self.config.launch
        return "_".join(
            [
                self.config.model.name,
                f"noise{self.levels['noise']}",
                self.levels["setup"].replace(":", ""),
                launch.precision,
                launch.layout.replace("_", "-"),
                "compiled" if launch.compile else "eager",
                f"prefetch{launch.prefetch}",
                f"seed{self.seed}",
            ]
        )


def load_plan(source: str | Path, overrides: Sequence[str] = ()) -> BenchmarkPlan:
    """Read a plan from a TOML file, or a shipped one by name; `overrides` such as `train.epochs=5` join its settings.

    Raises UsageError for a missing file, bad TOML, an unknown key or a value of the wrong kind.
    """
    path = Path(source)
    shipped = path.name == str(source) and not path.is_file() and path.name.removesuffix(".toml") in plan_names()
    if shipped:
        path = PLANS / f"{path.stem}.toml"
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no benchmark plan {path}; plans that ship: {', '.join(plan_names())}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    version = values.pop("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise UsageError(f"{path} has schema version {version}; this Veilray reads {SCHEMA_VERSION}")
    try:
        plan = BenchmarkPlan.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_fault(error)}") from None
    beside = path.parent / plan.base
    base = str(beside) if not shipped and beside.is_file() else plan.base
    return plan.model_copy(update={"base": base, "settings": _with(plan.settings, overrides)})


def plan_names() -> list[str]:
    """Names of the plans in the package."""
    return sorted(path.stem for path in PLANS.glob("*.toml"))


def write_plan(plan: BenchmarkPlan, folder: Path) -> None:
    """Write `plan.toml`, and `base.toml` beside it where the base is a file of the user's, so that they repeat it."""
    own = Path(plan.base).is_file()
    if own:
        write_text(folder / BASE_FILE, Path(plan.base).read_text(encoding="utf-8"))
    write_text(folder / PLAN_FILE, dump_plan(plan.model_copy(update={"base": BASE_FILE}) if own else plan))


def dump_plan(plan: BenchmarkPlan) -> str:
    """A plan as TOML."""
    values = plan.model_dump(mode="json", exclude_defaults=True) | {"base": plan.base}
    return tomlkit.dumps({"schema_version": SCHEMA_VERSION, **values})


def expand(plan: BenchmarkPlan, *, device: torch.device) -> list[PlannedRun]:
    """Every training of a plan in the order in which they run: seeds outermost, then the factors in their order.

    Raises UsageError where a combination is no valid configuration, where an adjustment names a level that the plan
    does not have, and where adjustments make two combinations the same.
    """
    levels = _levels(plan, device)
    for adjustment in plan.adjust:
        for factor, level in adjustment.when.items():
            if level not in levels[factor]:
                given = ", ".join(levels[factor])
                raise UsageError(f"adjust: {factor} = {level!r} is no level of the plan; its levels: {given}")
    combinations = [dict(zip(levels, chosen, strict=True)) for chosen in itertools.product(*levels.values())]
    runs = [_planned(plan, levels, chosen, seed, device) for seed in plan.seeds for chosen in combinations]
    if len({run.name for run in runs}) < len(runs):
        raise UsageError("adjust: it makes two combinations the same; leave out the factor that it overrides")
    return runs


def base_config(plan: BenchmarkPlan) -> RunConfig:
    """The configuration that all runs of a plan start from: its base with its settings."""
    return load_config(plan.base, list(_assignments(plan.settings)))


def level_text(value: Any) -> str:
    """A level as text: `0.2`, `0.05-0.4`, `yes`, `ddp:2`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return "-".join(f"{part:g}" for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _levels(plan: BenchmarkPlan, device: torch.device) -> dict[str, dict[str, Any]]:
    """factor -> text of a level -> its value; one level, the base's, where the plan does not vary the factor."""
    base = resolved(base_config(plan), device)
    table: dict[str, dict[str, Any]] = {}
    for factor, setting in SETTING_OF.items():
        section, key = setting.split(".")
        given = getattr(base, section).model_dump()[key]
        values = getattr(plan.factors, factor) or (SINGLE if factor == "setup" else given,)
        table[factor] = {level_text(value): value for value in values}
    return table


def _planned(
    plan: BenchmarkPlan,
    levels: Mapping[str, Mapping[str, Any]],
    chosen: dict[str, str],
    seed: int,
    device: torch.device,
) -> PlannedRun:
    kind, _, devices = chosen["setup"].partition(":")
    values = {setting: levels[factor][chosen[factor]] for factor, setting in SETTING_OF.items()}
    values |= {"launch.setup": kind, "seed": seed}
    changes = [*_assignments(plan.settings), *(_assignment(key, value) for key, value in values.items())]
    for adjustment in plan.adjust:
        if all(chosen[factor] == level for factor, level in adjustment.when.items()):
            changes += _assignments(adjustment.settings)
    config = resolved(load_config(plan.base, changes), device)
    return PlannedRun(levels=chosen, seed=seed, devices=int(devices or 1), config=config)


def _assignments(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _assignments(value, f"{prefix}{key}.")
        else:
            yield _assignment(prefix + key, value)


def _assignment(key: str, value: Any) -> str:
    # Numbers, texts, truth values and lists of them read the same in JSON and in TOML.
    return f"{key}={json.dumps(value)}"


def _with(settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Settings with overrides such as `train.epochs=5` put in."""
    merged: dict[str, Any] = json.loads(json.dumps(settings))
    for override in overrides:
        apply_override(merged, override)
    return merged
