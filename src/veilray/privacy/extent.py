"""How much an audit does: every size that its effort decides, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Effort = Literal["quick", "default", "full"]


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The sizes of one effort; what it prints is part of the name of every result."""

    effort: Effort
    seeds: tuple[int, ...]
    """Of folds, and of the noise that is drawn for the audit where an attack looks at several draws.

    Linkage and reconstruction look at one draw a seed. Re-identification and attributes look at the first draw alone,
    so that seeds vary their folds and nothing else; what a denoiser makes of the images is made of the first one, too.
    """
    denoised: int | None
    """Images of each variant that the given denoiser restores; None for all."""
    learns_denoised: bool
    """Whether attackers that are trained attack denoised images too."""
    learned_images: int
    """Images of a variant that attackers which are trained look at, at most."""
    fine_features: bool
    """Whether they look at AlexNet's features of 224 pixels a side as well."""
    linked: int
    """Images of a variant that are linked to the originals, at most."""
    checked: int
    """Draws that linkage is held against its closed form with, at least as far as there are patients and draws."""
    scored: int
    """Images of a variant whose fidelity is measured, at most."""
    tried: int
    """Patients whose images averaging, subtraction and guessing are tried on, at most."""
    releases: tuple[int, ...]
    """Numbers of releases that are averaged."""
    guessed: int
    """Seeds that are tried."""
    asked: int | None
    """Members, and others, that membership inference asks about; None for all."""
    shadows: int
    """Shadow models of the likelihood ratio attack; 0 where it is not run."""
    for_scale: bool
    """Whether other obfuscations are attacked, and a network is trained to undo each."""


QUICK = Extent(
    effort="quick",
    seeds=(1,),
    denoised=48,
    learns_denoised=False,
    learned_images=600,
    fine_features=False,
    linked=200,
    checked=960,
    scored=48,
    tried=32,
    releases=(1, 2, 4, 8),
    guessed=1 << 12,
    asked=30,
    shadows=0,
    for_scale=False,
)
"""Some 3 minutes for some hundreds of images on two cores."""

DEFAULT = Extent(
    effort="default",
    seeds=(1, 2, 3),
    denoised=None,
    learns_denoised=True,
    learned_images=2000,
    fine_features=True,
    linked=2000,
    checked=18_000,
    scored=400,
    tried=64,
    releases=(1, 2, 4, 8, 16, 32),
    guessed=1 << 16,
    asked=150,
    shadows=0,
    for_scale=False,
)
"""Some 30 minutes."""

FULL = Extent(
    effort="full",
    seeds=(1, 2, 3),
    denoised=None,
    learns_denoised=True,
    learned_images=4000,
    fine_features=True,
    linked=100_000,
    checked=36_000,
    scored=100_000,
    tried=96,
    releases=(1, 2, 4, 8, 16, 32, 64),
    guessed=1 << 20,
    asked=None,
    shadows=16,
    for_scale=True,
)
"""Hours."""


def extent_of(effort: Effort) -> Extent:
    """The sizes of an effort."""
    match effort:
        case "quick":
            return QUICK
        case "default":
            return DEFAULT
        case "full":
            return FULL
