"""Which network: architecture, size and variants."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from veilray.errors import UsageError


class ModelConfig(BaseModel):
    """Architecture of a denoiser; two configurations that are equal build networks with the same tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["unet", "unetpp"] = "unet"
    """Architecture: `unet` or `unetpp` (U-Net++)."""
    width: int = Field(default=64, ge=1, le=1024)
    """Channels of the first level; each level below has twice as many."""
    depth: int = Field(default=5, ge=2, le=8)
    """Number of levels, the bottleneck included; the input is halved depth - 1 times."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation: over the batch, or over groups of channels of one image."""
    block: Literal["conv-relu-conv-norm-relu", "conv-norm-relu-conv-norm-relu"] = "conv-relu-conv-norm-relu"
    """Order of layers in a block: the released notebooks', or the released DDP script's."""
    residual: bool = False
    """Whether the network's output is added to its input."""
    deep_supervision: bool = False
    """U-Net++ only: train every head X(0,1..depth-1), not the last alone."""

    @model_validator(mode="after")
    def _heads_only_in_unetpp(self) -> ModelConfig:
        if self.deep_supervision and self.name != "unetpp":
            raise ValueError("deep_supervision needs name = 'unetpp': the other architectures have one head")
        return self


def checked_config(**fields: Any) -> ModelConfig:
    """A configuration of these fields. UsageError, naming the first one that is wrong, where there is no such model."""
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise UsageError(f"no such model: {where} = {fault['input']!r}: {fault['msg']}") from None
