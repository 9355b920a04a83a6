"""What noise is added: the part of a configuration that Site One and Site Two must agree on."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from veilray.errors import UsageError

Std = Annotated[float, Field(gt=0.0, le=10.0, allow_inf_nan=False)]

Mean = Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]


class Recorruption(BaseModel):
    """Noise that is added to an already noisy image before a network sees it, and how often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strength: float = Field(gt=0.0, le=4.0)
    """Its standard deviation, as a multiple of that of the noise in the image."""
    count: int = Field(ge=1, le=256)
    """Times that it is added; the outputs are averaged."""


class NoiseConfig(BaseModel):
    """Gaussian noise y = clip(x + n), n ~ N(mean, std^2), on pixels in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Mean | tuple[Mean, Mean] = 0.1
    """Mean of the noise, in units of the [0, 1] range, or [low, high], drawn uniformly for each image."""
    std: Std | tuple[Std, Std] = 0.2
    """Standard deviation of the noise in units of the [0, 1] range, or [low, high], drawn uniformly for each image."""
    clip: bool = True
    """Whether noisy values are clamped to [0, 1]."""
    fresh: bool = True
    """Whether training noise is drawn anew every epoch; false keeps one draw of each whole image for all epochs, as the
    paper does."""

    @model_validator(mode="after")
    def _range_is_ordered(self) -> NoiseConfig:
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name} = [{value[0]}, {value[1]}]: the first must not exceed the second")
        return self

    @property
    def mean_range(self) -> tuple[float, float]:
        """Lowest and highest mean."""
        return self.mean if isinstance(self.mean, tuple) else (self.mean, self.mean)

    @property
    def mean_text(self) -> str:
        """The mean in words: `0.1`, or `0 to 0.2` where it is drawn for each image."""
        return _text(self.mean_range)

    @property
    def std_text(self) -> str:
        """The standard deviation in words, as the mean."""
        return _text(self.std_range)

    @property
    def single_mean(self) -> float:
        """The mean, where it is the same for all images. UsageError where it is drawn for each."""
        if isinstance(self.mean, tuple):
            raise UsageError(f"noise.mean = [{self.mean[0]:g}, {self.mean[1]:g}]: one mean is needed here, not a range")
        return self.mean

    @property
    def std_range(self) -> tuple[float, float]:
        """Lowest and highest standard deviation."""
        return self.std if isinstance(self.std, tuple) else (self.std, self.std)


def _text(ends: tuple[float, float]) -> str:
    low, high = ends
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
