"""The classical methods by name: what each smooths with, its grid of strengths, and how the noise's mean is taken off.

A method that averages noisy pixels estimates their mean g(x), not x (`obfuscation.mean_map`). So each smoother makes
two methods: NAME, whose result goes through the inverse of g, and NAME-naive, from which the noise's mean is
subtracted. Both are told the noise's true mean and standard deviation.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
import torch

from veilray.errors import UsageError
from veilray.evaluation.baselines.block_matching import LICENCE, bm3d_smooth
from veilray.evaluation.baselines.non_local_means import nlm_smooth
from veilray.evaluation.baselines.total_variation import tv_smooth
from veilray.evaluation.baselines.wavelets import wavelet_smooth
from veilray.images.radiograph import FloatImage
from veilray.obfuscation.mean_map import mean_map

Smoother = Literal["bm3d", "nlm", "tv", "wavelet"]
Value = float | int | str
Strength = dict[str, Value]
"""Named arguments of a smoother; `factor` multiplies the noise's standard deviation."""

TITLES: dict[str, str] = {"bm3d": "BM3D", "nlm": "Non-local means", "tv": "Total variation", "wavelet": "Wavelets"}
"""How a smoother is written, by its name."""
NAIVE = "-naive"

# Those of the extras `bm3d` and `baselines`; a version is on record with every score.
_PACKAGES = {
    "bm3d": {"bm3d": "bm3d"},
    "nlm": {"skimage": "scikit-image"},
    "tv": {"skimage": "scikit-image"},
    "wavelet": {"skimage": "scikit-image", "pywt": "PyWavelets"},
}
_TABLE = 4096


@dataclass(frozen=True, kw_only=True)
class Method:
    """A classical method."""

    smoother: Smoother
    naive: bool

    @property
    def name(self) -> str:
        """Its name in result files and on the command line."""
        return self.smoother + (NAIVE if self.naive else "")

    @property
    def title(self) -> str:
        """Its name in tables."""
        return TITLES[self.smoother] + (", naive" if self.naive else "")


@dataclass(frozen=True, kw_only=True)
class KnownNoise:
    """What a classical method is told of an image's noise, in units of the [0, 1] range."""

    mean: float
    std: float
    clip: bool


METHODS: dict[str, Method] = {
    method.name: method
    for smoother in TITLES
    for method in (Method(smoother=smoother, naive=False), Method(smoother=smoother, naive=True))  # type: ignore[arg-type]
}
"""Every method by its name."""


def parse_methods(text: str) -> tuple[Method, ...]:
    """Methods from names with commas between, each once, in the order given.

    Raises UsageError for an unknown name, listing those that are known, and for a package that is not installed.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in METHODS:
            raise UsageError(f"there is no method {name!r}: choose from {', '.join(METHODS)}")
    if not names:
        raise UsageError(f"--methods names none: choose from {', '.join(METHODS)}")
    methods = tuple(METHODS[name] for name in names)
    for method in methods:
        _check_installed(method.smoother)
    return methods


def licence_notice(methods: Sequence[Method]) -> str:
    """What must be said before methods are used; empty where nothing need be."""
    return LICENCE if any(method.smoother == "bm3d" for method in methods) else ""


def packages(smoother: Smoother) -> dict[str, str]:
    """The packages that compute a smoother, with their versions."""
    return {name: version(name) for name in _PACKAGES[smoother].values()}


def grid(smoother: Smoother) -> tuple[Strength, ...]:
    """The strengths among which tuning chooses."""
    match smoother:
        case "bm3d":
            return _product(profile=("np", "vn"), factor=(0.8, 0.9, 1.0, 1.1, 1.25, 1.45, 1.7, 2.0))
        case "nlm":
            windows = ({"patch": 5, "distance": 6}, {"patch": 7, "distance": 6}, {"patch": 7, "distance": 11})
            factors = _product(factor=(0.4, 0.55, 0.7, 0.85, 1.0, 1.2, 1.45, 1.75))
            return tuple({**window, **factor} for window in windows for factor in factors)
        case "tv":
            return _product(eps=(1e-5, 1e-6), factor=(0.5, 0.7, 0.9, 1.1, 1.3, 1.6, 2.0, 2.5))
        case "wavelet":
            rules = (("BayesShrink", (0.7, 0.85, 1.0, 1.2, 1.5)), ("VisuShrink", (0.2, 0.3, 0.4, 0.55, 0.75)))
            return tuple(
                one for rule, factors in rules for one in _product(rule=(rule,), shifts=(7, 11), factor=factors)
            )


def at_edge(smoother: Smoother, strength: Strength) -> bool:
    """Whether a strength's factor is the first or last of those tried with its other settings."""
    others = {key: value for key, value in strength.items() if key != "factor"}
    factors = [float(one["factor"]) for one in grid(smoother) if others.items() <= one.items()]
    return strength["factor"] in (min(factors), max(factors))


def smooth(noisy: FloatImage, *, smoother: Smoother, std: float, strength: Strength) -> FloatImage:
    """Smooth an image, noise's mean and all: (H, W), float32, about [0, 1] -> the same, not clamped."""
    given: dict[str, object] = dict(strength)
    match smoother:
        case "bm3d":
            return bm3d_smooth(noisy, std=std, **given)  # type: ignore[arg-type]
        case "nlm":
            return nlm_smooth(noisy, std=std, **given)  # type: ignore[arg-type]
        case "tv":
            return tv_smooth(noisy, std=std, **given)  # type: ignore[arg-type]
        case "wavelet":
            return wavelet_smooth(noisy, std=std, **given)  # type: ignore[arg-type]


def take_off_mean(smoothed: FloatImage, *, naive: bool, noise: KnownNoise) -> FloatImage:
    """The estimate of x from that of the noisy pixels' mean: (H, W), float32 -> the same, [0, 1].

    Naively the noise's mean is subtracted; otherwise the inverse of g is looked up in a table of 4,097 values of g, as
    it is nearly linear between them. Without clamping both are the same.
    """
    if naive or not noise.clip:
        subtracted: FloatImage = np.clip(smoothed - np.float32(noise.mean), 0.0, 1.0)
        return subtracted
    x = torch.linspace(0.0, 1.0, _TABLE + 1, dtype=torch.float64)
    estimate: FloatImage = np.interp(smoothed, mean_map(x, mean=noise.mean, std=noise.std).numpy(), x.numpy()).astype(
        np.float32
    )
    return estimate


def restore(noisy: FloatImage, method: Method, *, noise: KnownNoise, strength: Strength) -> FloatImage:
    """Denoise an image by a classical method: (H, W), float32, about [0, 1] -> the same, [0, 1]."""
    smoothed = smooth(noisy, smoother=method.smoother, std=noise.std, strength=strength)
    return take_off_mean(smoothed, naive=method.naive, noise=noise)


@functools.cache
def warm_up(smoother: Smoother) -> None:
    """Import what a smoother needs and use it once, so that the next call takes no longer than any other."""
    ramp = np.linspace(0.0, 1.0, 32 * 32, dtype=np.float32).reshape(32, 32)
    smooth(ramp, smoother=smoother, std=0.1, strength=grid(smoother)[0])


def _product(**choices: Sequence[Value]) -> tuple[Strength, ...]:
    return tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


def _check_installed(smoother: Smoother) -> None:
    for module, package in _PACKAGES[smoother].items():
        if importlib.util.find_spec(module) is None:
            extra = "bm3d" if smoother == "bm3d" else "baselines"
            raise UsageError(
                f"{TITLES[smoother]} needs {package}, which is not installed: install Veilray with its extra {extra!r}"
            )
