"""What has been given away of one acquisition, composed over all its releases; and what a further one would add.

Noise of one field (one secret, one image, one geometry) is nested: all its levels together say as much as the least
noisy one. Independent noise averages out: inverse variances add up. A clean image leaves nothing to protect. The sum is
an upper bound: it takes the pixels of all geometries for the same ones, and leaves the clamp out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Mode = Literal["noisy", "pairs", "model-only"]
"""What leaves: noisy images; noisy and clean ones; or nothing but a model that was trained on them."""
NoiseSource = Literal["secret", "entropy", "seeded", "none"]
"""Where the noise of a release comes from; none where no image leaves."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """One image in one release."""

    release_id: str
    mode: Mode
    field: str
    """Names the noise field: the same for the same noise, another for independent noise."""
    geometry: str
    std: float
    clip: bool
    mean: float | None
    """Of the noise, which says what the clamp hides; None where it is unknown or no image left."""


def composed_std(given: Sequence[Given]) -> float:
    """Std of the one noisy image that says as much as all of these: 0 for a clean one, infinity for nothing."""
    if any(one.mode == "pairs" for one in given):
        return 0.0
    least: dict[str, float] = {}
    for one in given:
        if one.mode == "noisy":
            least[one.field] = min(one.std, least.get(one.field, math.inf))
    precision = math.fsum(std**-2 for std in least.values())
    return precision**-0.5 if precision else math.inf


def objection(earlier: Sequence[Given], new: Given) -> str | None:
    """Why `new` may not leave after `earlier` of the same acquisition; None where it gives nothing further away."""
    images = [one for one in earlier if one.mode != "model-only"]
    if new.mode == "model-only" or not images:
        return None
    others = sorted({one.geometry for one in images} - {new.geometry})
    if others:
        return f"it left in another geometry before ({others[0]}; now {new.geometry})"
    before, after = composed_std(images), composed_std([*images, new])
    if new.mode == "pairs" and before > 0:
        return f"its clean pixels would void a release at std {before:.3g}"
    if after < before * (1 - 1e-9):
        return f"what left of it would weaken from std {before:.3g} to {after:.3g}, all receivers' copies together"
    return None if before == 0 else _clamp_objection([one for one in images if one.field == new.field], new)


def _clamp_objection(same: Sequence[Given], new: Given) -> str | None:
    """Why `new` would show what the clamp of earlier levels of the same field hides.

    An unclamped level holds all that noisier ones show, clamped or not. A clamped one is followed by noisier ones with
    the same mean: another mean moves the clamp, and what one cuts off the other shows.
    """
    if any(not one.clip and one.std <= new.std for one in same):
        return None
    if not new.clip:
        return f"it left clamped before, or noisier than std {new.std:g}, and would now leave unclamped"
    clamped = [one.mean for one in same if one.std <= new.std]
    if not clamped or (new.mean is not None and new.mean in clamped):
        return None
    before = ", ".join(sorted({"unknown" if mean is None else f"{mean:g}" for mean in clamped}))
    now = "unknown" if new.mean is None else f"{new.mean:g}"
    return f"it left with noise of another mean before ({before}; now {now}), and both together undo the clamp"
