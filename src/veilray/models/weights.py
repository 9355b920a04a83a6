"""Weights on disk: safetensors with the configuration of their network in the header; nothing is executable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from veilray.errors import RunError
from veilray.models.build import DenoisingNetwork, build_model
from veilray.models.config import ModelConfig
from veilray.models.tensors import read_tensors, write_tensors
from veilray.obfuscation.config import NoiseConfig, Recorruption

FORMAT = "veilray-weights"
SCHEMA_VERSION = "1"
WEIGHTS_FILE = "weights.safetensors"
"""The weights in the folder of a model that left its run behind."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A weights file, read and checked against its own configuration."""

    config: ModelConfig
    tensors: dict[str, Tensor]
    """The state of the network that `config` builds."""
    noise: NoiseConfig | None
    """The noise they were trained on; None where the file does not say."""
    recorruption: Recorruption | None = None
    """The noise that is added at inference, where the training added some; None elsewhere."""


def save_weights(
    path: Path,
    model: nn.Module,
    *,
    noise: NoiseConfig | None = None,
    recorruption: Recorruption | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a network's weights, its configuration and, where given, the noise it was trained on; whole or not at all.

    `recorruption`: the noise that is added at inference. `tensors`: the network's state at an earlier moment, to be
    written instead of the present one.

    Raises TypeError for a network that is not one of Veilray's.
    """
    if not isinstance(model, DenoisingNetwork):
        raise TypeError(f"{type(model).__name__} is not a network of Veilray's: its file could not be read again")
    header = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "model": model.config.model_dump_json()}
    if noise is not None:
        header["noise"] = noise.model_dump_json()
    if recorruption is not None:
        header["recorruption"] = recorruption.model_dump_json()
    write_tensors(path, model.state_dict() if tensors is None else tensors, header)


def load_weights(path: Path, *, expected: ModelConfig | None = None) -> Weights:
    """Read a weights file.

    Raises RunError where the file is missing, cut short, foreign or of another version, where its tensors are not those
    of its own configuration or not finite, and where its configuration is not the `expected` one.
    """
    header, tensors = read_tensors(path, format=FORMAT, schema_version=SCHEMA_VERSION)
    try:
        config = ModelConfig.model_validate_json(header.get("model", ""))
        noise = NoiseConfig.model_validate_json(header["noise"]) if "noise" in header else None
        added = header.get("recorruption")
        recorruption = None if added is None else Recorruption.model_validate_json(added)
    except ValidationError:
        raise RunError(f"{path} describes a model that this Veilray does not know; use the one that wrote it") from None
    if expected is not None and config != expected:
        raise RunError(
            f"{path} holds the weights of {describe_model(config)}, but {describe_model(expected)} was asked for"
        )
    _check_tensors(path, config, tensors)
    return Weights(config=config, tensors=tensors, noise=noise, recorruption=recorruption)


def load_model(path: Path) -> DenoisingNetwork:
    """The network in a weights file, on the CPU, in evaluation mode. Raises RunError as `load_weights`."""
    return model_of(load_weights(path))


def model_of(weights: Weights) -> DenoisingNetwork:
    """The network that a weights file describes, on the CPU, in evaluation mode."""
    with torch.device("meta"):
        model = build_model(weights.config)  # without drawing initial weights from the global generator
    model.load_state_dict(weights.tensors, assign=True)
    return model.eval()


def _check_tensors(path: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        wanted = {name: (value.shape, value.dtype) for name, value in build_model(config).state_dict().items()}
    held = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    differing = sorted(name for name in wanted.keys() | held.keys() if wanted.get(name) != held.get(name))
    if differing:
        raise RunError(
            f"{path} says it holds {describe_model(config)}, but {len(differing)} of its tensors do not fit "
            f"({differing[0]} first): the file is damaged, train again or take another checkpoint"
        )
    broken = sorted(name for name, value in tensors.items() if not value.isfinite().all())
    if broken:
        raise RunError(
            f"{path} holds numbers that are not finite in {len(broken)} of its tensors ({broken[0]} first): train "
            "again or take another checkpoint"
        )


def describe_model(config: ModelConfig) -> str:
    """A model in one line: its name, its sizes and whatever is not a default."""
    defaults = ModelConfig()
    shown = {
        name: value
        for name, value in config.options().items()
        if name in ("width", "depth") or value != getattr(defaults, name)
    }
    return f"{config.name} ({', '.join(f'{name} {value}' for name, value in shown.items())})"
