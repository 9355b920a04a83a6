"""What noise is added: the part of a configuration that Site One and Site Two must agree on."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Std = Annotated[float, Field(gt=0.0, le=10.0, allow_inf_nan=False)]


class NoiseConfig(BaseModel):
    """Gaussian noise y = clip(x + n), n ~ N(mean, std^2), on pixels in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float = Field(default=0.1, ge=-1.0, le=1.0)
    """Mean of the noise, in units of the [0, 1] range."""
    std: Std | tuple[Std, Std] = 0.2
    """Standard deviation of the noise in units of the [0, 1] range, or [low, high], drawn uniformly for each image."""
    clip: bool = True
    """Whether noisy values are clamped to [0, 1]."""
    fresh: bool = True
    """Whether training noise is drawn anew every epoch; false keeps one draw for all epochs, as the paper does."""

    @model_validator(mode="after")
    def _range_is_ordered(self) -> NoiseConfig:
        if isinstance(self.std, tuple) and self.std[0] > self.std[1]:
            raise ValueError(f"std = [{self.std[0]}, {self.std[1]}]: the first must not exceed the second")
        return self

    @property
    def std_range(self) -> tuple[float, float]:
        """Lowest and highest standard deviation."""
        return self.std if isinstance(self.std, tuple) else (self.std, self.std)
