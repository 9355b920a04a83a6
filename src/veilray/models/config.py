"""Which network: architecture, size and variants."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from veilray.errors import UsageError

Architecture = Literal["unet", "unetpp", "attention_unet", "nafnet", "restormer", "dncnn", "tnrd"]
Inputs = Literal["image", "image+mean", "image+mean+std"]
Fold = Literal[2, 4]

TITLES: dict[str, str] = {
    "unet": "U-Net",
    "unetpp": "U-Net++",
    "attention_unet": "Attention U-Net",
    "nafnet": "NAFNet",
    "restormer": "Restormer",
    "dncnn": "DnCNN",
    "tnrd": "TNRD",
}
"""How an architecture is written, by its name."""

USES: dict[str, tuple[str, ...]] = {
    "unet": ("depth", "norm", "block", "residual", "inputs"),
    "unetpp": ("depth", "norm", "block", "residual", "deep_supervision", "inputs"),
    "attention_unet": ("depth", "norm", "block", "residual", "inputs"),
    "nafnet": ("depth", "residual", "inputs", "fold"),
    "restormer": ("depth", "residual", "inputs"),
    "dncnn": ("layers", "inputs"),
    "tnrd": ("stages",),
}
"""Fields besides name and width that an architecture has a use for."""

MOST_TNRD_FILTERS = 48
"""Filters of 7 x 7 that are independent of one another and of a constant."""

_SIZES: dict[str, dict[str, int]] = {
    "nafnet": {"width": 32, "depth": 4},
    "restormer": {"width": 24, "depth": 4},
    "tnrd": {"width": MOST_TNRD_FILTERS},
}
"""Width and depth where a configuration says nothing, of architectures with others than the U-Net's."""


class ModelConfig(BaseModel):
    """Architecture of a denoiser; two configurations that are equal build networks with the same tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Architecture = "unet"
    """Architecture: `unet`, `unetpp` (U-Net++), `attention_unet` (U-Net with gated skips), `nafnet` (gated blocks
    behind a pixel-unshuffle), `restormer` (attention between channels), `dncnn` (a chain of convolutions) or `tnrd`
    (learnt diffusion)."""
    width: int = Field(default=64, ge=1, le=1024)
    """Channels of the first level, each level below having twice as many; of every layer in dncnn; filters in tnrd. If
    left out, 32 for `nafnet`, 24 for `restormer`, 48 for `tnrd` and 64 for the others."""
    depth: int = Field(default=5, ge=2, le=8)
    """Number of levels, the bottleneck included; the input is halved depth - 1 times. If left out, 4 for `nafnet` and
    `restormer` and 5 for the others."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation: over the batch, or over groups of channels of one image."""
    block: Literal["conv-relu-conv-norm-relu", "conv-norm-relu-conv-norm-relu"] = "conv-relu-conv-norm-relu"
    """Order of layers in a block: the released notebooks', or the released DDP script's."""
    residual: bool = False
    """Whether the network's output is added to its input."""
    deep_supervision: bool = False
    """U-Net++ only: train every head X(0,1..depth-1), not the last alone."""

    inputs: Inputs = "image"
    """What the network is given: the noisy image alone, or with it the mean of its noise, or mean and std."""
    fold: Fold = 2
    """NAFNet only: side in pixels of the squares that are folded into channels before the first layer."""
    layers: int = Field(default=17, ge=3, le=64)
    """dncnn only: number of convolutions."""
    stages: int = Field(default=5, ge=1, le=20)
    """tnrd only: number of diffusion steps, each with filters and influence functions of its own."""

    @property
    def channels_in(self) -> int:
        """Channels of the network's input: the image, then a constant map for each known parameter of the noise."""
        return 1 + self.inputs.count("+")

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network normalises over the batch."""
        return self.name == "dncnn" or ("norm" in USES[self.name] and self.norm == "batch")

    def options(self) -> dict[str, Any]:
        """The fields that the architecture has a use for, which are the arguments of its class."""
        return {name: getattr(self, name) for name in ("width", *USES[self.name])}

    @model_validator(mode="before")
    @classmethod
    def _size_by_name(cls, values: Any) -> Any:
        return {**_SIZES.get(str(values.get("name")), {}), **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> ModelConfig:
        for name, field in type(self).model_fields.items():
            if name in {"name", "width", *USES[self.name]} or getattr(self, name) == field.default:
                continue
            users = " or ".join(f"'{user}'" for user, used in USES.items() if name in used)
            raise ValueError(f"{name} needs name = {users}; '{self.name}' has no use for it")
        if self.name == "tnrd" and self.width > MOST_TNRD_FILTERS:
            raise ValueError(f"width = {self.width}: 'tnrd' has {MOST_TNRD_FILTERS} filters of 7 x 7 at most")
        if self.name == "restormer" and self.width % 2:
            raise ValueError(f"width = {self.width}: 'restormer' needs an even one")
        return self


def fields_beside(asked: Any, *, preset: dict[str, Any]) -> dict[str, Any]:
    """A preset's fields but, where another network is asked for, its width and what that has no use for."""
    name = asked.get("name") if isinstance(asked, dict) else None
    if not isinstance(name, str) or name not in USES or name == preset["name"]:
        return preset
    return {key: value for key, value in preset.items() if key in USES[name]}


def checked_config(**fields: Any) -> ModelConfig:
    """A configuration of these fields. UsageError, naming the first one that is wrong, where there is no such model."""
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        named = f"{where} = {fault['input']!r}: " if where else ""
        raise UsageError(f"no such model: {named}{fault['msg'].removeprefix('Value error, ')}") from None
