"""What a denoiser does to noise, edges, ribs and nodules, measured on phantoms whose clean images are known.

A denoiser is not linear, so each figure hangs on the contrast and the noise that are given with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from estimates import interval
from veilray.evaluation.baselines.methods import METHODS, KnownNoise, restore
from veilray.images.phantom import draw_patient, phantom_of
from veilray.images.phantom.study import Blob
from veilray.images.radiograph import FloatImage
from veilray.inference.denoiser import Denoiser

MEAN = 0.1
LEVELS = (0.1, 0.2, 0.3)
SEED = 4107
PHANTOMS = 8
DRAWS = 8
SIDE = 256
EDGES = (0.05, 0.1, 0.2, 0.4)
"""Contrasts of the slanted edge, about a grey of 0.5."""
TILT = np.deg2rad(5.0)
PATCH, INNER = 128, 64
"""Sides in pixels of the square that holds the edge, and of its middle, which is measured."""
BANDS = ((0.0, 0.125), (0.125, 0.25), (0.25, 0.5))
"""Spatial frequencies in cycles a pixel."""
NODULES = {"6 mm": 0.0075, "10 mm": 0.0125, "20 mm": 0.025}
"""Radii in frame widths of 40 cm, by diameter."""
_NO_RIB = 1e-6
Draw = npt.NDArray[np.float64]


class Restorer(Protocol):
    """Denoises (H, W), float32, about [0, 1], told the noise's mean and std."""

    def __call__(self, noisy: FloatImage, *, mean: float, std: float) -> FloatImage: ...


def network(denoiser: Denoiser) -> Restorer:
    """A trained network, which takes what it wants of what it is told."""

    def restored(noisy: FloatImage, *, mean: float, std: float) -> FloatImage:
        return denoiser(noisy, mean=mean, std=std)

    return restored


def total_variation(noisy: FloatImage, *, mean: float, std: float) -> FloatImage:
    """Total variation through the inverse of the clamp's mean map, its weight 1.1 times the noise."""
    noise = KnownNoise(mean=mean, std=std, clip=bool(noisy.min() >= 0.0 and noisy.max() <= 1.0))
    return restore(noisy, METHODS["tv"], noise=noise, strength={"eps": 1e-6, "factor": 1.1})


def physics(methods: Mapping[str, Restorer]) -> dict[str, Any]:
    """Every measurement, by method."""
    return {
        "phantoms": PHANTOMS,
        "draws": DRAWS,
        "mean": MEAN,
        "noise_left": {name: [noise_left(one, std) for std in LEVELS] for name, one in methods.items()},
        "edge": {
            "clean": [edge(None, std=0.0, contrast=contrast) for contrast in EDGES],
            **{
                name: [edge(one, std=std, contrast=contrast) for std in LEVELS for contrast in EDGES]
                for name, one in methods.items()
            },
        },
        "contrast": {name: [found for std in LEVELS for found in contrasts(one, std)] for name, one in methods.items()},
    }


def noise_left(restorer: Restorer, std: float) -> dict[str, Any]:
    """The noise-power spectrum after denoising as a share of the noisy image's, by band, and the std that is left.

    Noise is what differs between outputs for draws of the same phantom, in the middle half of the image; phantoms are
    averaged.
    """
    before, after = [], []
    for patient in range(PHANTOMS // 2):
        clean = _phantom(patient)
        noisy = [_noisy(clean, std, f"nps/{patient}/{draw}") for draw in range(DRAWS)]
        before.append(_spectrum(noisy))
        after.append(_spectrum([restorer(image, mean=MEAN, std=std) for image in noisy]))
    power = {"before": np.mean(before, axis=0), "after": np.mean(after, axis=0)}
    radius = _radii(SIDE // 2)
    chosen = [(radius >= low) & (radius < high) & (radius > 0) for low, high in BANDS]
    return {
        "std": std,
        "std_left": float(np.sqrt(power["after"].sum())),
        "std_before": float(np.sqrt(power["before"].sum())),
        "bands": [list(band) for band in BANDS],
        "share_left": [float(power["after"][one].sum() / power["before"][one].sum()) for one in chosen],
    }


def edge(restorer: Restorer | None, *, std: float, contrast: float) -> dict[str, float]:
    """The response to a slanted edge of a contrast (after ISO 12233): MTF50 in cycles a pixel, and the contrast kept.

    The edge stands in a square in the middle of a phantom; outputs of several draws are averaged first, so that noise
    which is left does not count. Without a restorer, the clean edge.
    """
    distance = _distance()
    clean = _phantom(0)
    middle = slice(SIDE // 2 - PATCH // 2, SIDE // 2 + PATCH // 2)
    clean[middle, middle] = 0.5 + contrast * (np.clip(distance + 0.5, 0.0, 1.0) - 0.5)
    if restorer is None:
        seen = clean.astype(np.float64)
    else:
        outputs = [
            restorer(_noisy(clean, std, f"edge/{contrast}/{draw}"), mean=MEAN, std=std) for draw in range(2 * DRAWS)
        ]
        seen = np.mean(outputs, axis=0, dtype=np.float64)
    inner = slice(PATCH // 2 - INNER // 2, PATCH // 2 + INNER // 2)
    profile = _profile(seen[middle, middle][inner, inner], distance[inner, inner])
    ends = np.median(profile[-24:]) - np.median(profile[:24])
    return {"std": std, "contrast": contrast, "mtf50": _mtf50(profile), "contrast_kept": float(ends / contrast)}


def contrasts(restorer: Restorer, std: float) -> list[dict[str, Any]]:
    """How much of the contrast of ribs and of added nodules outlives noise and denoising; 1 is all of it.

    The same noise on the phantom with and without the detail: the difference of the outputs, projected on that of the
    clean images. Intervals over phantoms.
    """
    found = []
    for name, changed in _details().items():
        kept = []
        for patient in range(PHANTOMS):
            anatomy, study = draw_patient(patient=patient, follow_up=0, seed=SEED)
            without, present = (phantom_of(*one, size=SIDE) for one in changed(anatomy, study))
            wanted = present.astype(np.float64) - without
            pairs = [
                [
                    restorer(_noisy(image, std, f"{name}/{patient}/{draw}"), mean=MEAN, std=std)
                    for image in (without, present)
                ]
                for draw in range(DRAWS // 2)
            ]
            got = np.mean([after.astype(np.float64) - before for before, after in pairs], axis=0)
            kept.append(float((got * wanted).sum() / (wanted * wanted).sum()))
        found.append({"detail": name, "std": std, **interval(kept, [str(patient) for patient in range(PHANTOMS)])})
    return found


def _details() -> dict[str, Callable[..., Sequence[tuple[Any, Any]]]]:
    """Each detail's name, with what gives anatomy and study without it and with it."""

    def ribs(anatomy: Any, study: Any) -> Sequence[tuple[Any, Any]]:
        return (replace(anatomy, rib_radius=_NO_RIB), study), (anatomy, study)

    def nodule(radius: float) -> Callable[..., Sequence[tuple[Any, Any]]]:
        def with_it(anatomy: Any, study: Any) -> Sequence[tuple[Any, Any]]:
            blob = Blob(x=-0.17, y=-0.05, radius=radius, depth=2 * radius, solid=True)
            return (anatomy, study), (anatomy, replace(study, blobs=(*study.blobs, blob)))

        return with_it

    return {"ribs": ribs, **{f"nodule of {name}": nodule(radius) for name, radius in NODULES.items()}}


def _phantom(patient: int) -> FloatImage:
    return phantom_of(*draw_patient(patient=patient, follow_up=0, seed=SEED), size=SIDE)


def _noisy(clean: FloatImage, std: float, name: str) -> FloatImage:
    """Clamped noise that hangs on the name alone."""
    seed = np.random.SeedSequence(SEED, spawn_key=tuple(name.encode()))
    field = np.random.default_rng(seed).standard_normal(clean.shape, dtype=np.float32)
    return np.clip(clean + np.float32(MEAN) + np.float32(std) * field, 0.0, 1.0)


def _spectrum(images: Sequence[FloatImage]) -> Draw:
    """Power of what differs between draws, (side, side), which adds up to its variance."""
    middle = slice(SIDE // 4, SIDE - SIDE // 4)
    stack = np.stack([image[middle, middle] for image in images]).astype(np.float64)
    apart = (stack - stack.mean(axis=0)) * np.sqrt(len(images) / (len(images) - 1))
    power: Draw = np.mean(np.abs(np.fft.fft2(apart)) ** 2, axis=0) / (SIDE // 2) ** 4
    return power


def _radii(side: int) -> Draw:
    frequency = np.fft.fftfreq(side)
    radii: Draw = np.hypot(frequency[:, None], frequency[None])
    return radii


def _distance() -> Draw:
    """Signed distance in pixels from the edge, which is tilted against the columns, (PATCH, PATCH)."""
    axis = np.arange(PATCH) - (PATCH - 1) / 2
    distance: Draw = axis[None] * np.cos(TILT) + axis[:, None] * np.sin(TILT)
    return distance


def _profile(pixels: Draw, distance: Draw) -> Draw:
    """Mean grey across the edge in steps of a quarter of a pixel, over 24 pixels on either side."""
    steps = np.floor(4 * (distance + 24)).astype(int)
    inside = (steps >= 0) & (steps < 192)
    sums = np.bincount(steps[inside], weights=pixels[inside], minlength=192)
    profile: Draw = sums / np.bincount(steps[inside], minlength=192)
    return profile


def _mtf50(profile: Draw) -> float:
    """Cycles a pixel at which the modulation has fallen to a half; 0 where there is no edge."""
    spread = np.diff(profile) * np.hanning(len(profile) - 1)
    response = np.abs(np.fft.rfft(spread, n=4096))
    if response[0] <= 0:
        return 0.0
    response = response / response[0]
    below = int(np.argmax(response < 0.5))
    share = (response[below - 1] - 0.5) / (response[below - 1] - response[below]) if below else 0.0
    return float((below - 1 + share) * 4 / 4096) if below else 0.0
