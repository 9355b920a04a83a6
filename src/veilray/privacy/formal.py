"""The formal side of an audit: what the noise promises for images that differ in this or that much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from veilray.errors import UsageError
from veilray.privacy.accounting import DELTA, gaussian_epsilon, gaussian_mu, needed_std, protected_sensitivity
from veilray.privacy.results import Composition, FormalLevel, FormalLine, FormalSide

PATCH = 16
"""Side of the patch in the table of adjacencies, in pixels."""

ANY_IMAGE = "any image for any other"
"""The adjacency of whole images, in words."""

KEYED = (
    "Noise drawn from a site's secret is Gaussian only to those who lack the secret: the promise is computational, and "
    "whoever holds the secret subtracts the noise"
)


def adjacencies(*, height: int, width: int, grey_step: float, most_images: int = 1) -> dict[str, float]:
    """What two images may differ in, in words, with the largest L2 distance of two such images, pixels in [0, 1].

    `grey_step`: one grey level of the originals, 1/255 for 8 bits. `most_images`: of one patient; where a patient has
    several, they are protected together or not at all. UsageError for sizes or steps that are none.
    """
    if height < 1 or width < 1 or most_images < 1 or not 0.0 < grey_step <= 1.0:
        raise UsageError(f"{height} x {width} pixels with a grey level of {grey_step}: there is no such image")
    pixels = height * width
    patch = min(height, PATCH) * min(width, PATCH)
    of_patient = {f"all {most_images} images of one patient for any others": math.sqrt(most_images * pixels)}
    return {
        ANY_IMAGE: math.sqrt(pixels),
        **(of_patient if most_images > 1 else {}),
        f"any patch of {PATCH} x {PATCH} pixels for any other": math.sqrt(patch),
        "all pixels by one grey level": grey_step * math.sqrt(pixels),
        "one pixel, by any amount": 1.0,
        "one pixel by one grey level": grey_step,
    }


def formal_level(
    name: str, *, std: float, distances: Mapping[str, float], delta: float = DELTA, notes: Sequence[str] = ()
) -> FormalLevel:
    """What one level of noise promises for each adjacency, and the distance that it protects at epsilon 1 and 8."""
    lines = []
    for adjacency, distance in distances.items():
        mu = gaussian_mu(sensitivity=distance, std=std)
        epsilon = gaussian_epsilon(mu=mu, delta=delta)
        lines.append(FormalLine(std=std, adjacency=adjacency, sensitivity=distance, mu=mu, epsilon=epsilon))
    return FormalLevel(
        name=name,
        std=std,
        protected_at_1=protected_sensitivity(std=std, epsilon=1.0, delta=delta),
        protected_at_8=protected_sensitivity(std=std, epsilon=8.0, delta=delta),
        lines=tuple(lines),
        notes=tuple(notes),
    )


def formal_side(
    levels: Mapping[str, float],
    *,
    height: int,
    width: int,
    grey_step: float,
    most_images: int = 1,
    delta: float = DELTA,
    composition: Composition | None = None,
) -> FormalSide:
    """The formal side for levels of noise by name; with the composition over what left before, where that is known.

    `most_images`: of one patient.
    """
    distances = adjacencies(height=height, width=width, grey_step=grey_step, most_images=most_images)
    entire = distances[ANY_IMAGE]
    found = [formal_level(name, std=std, distances=distances, delta=delta) for name, std in levels.items()]
    if composition is not None and composition.least_std > 0.0:
        name = "all releases together, of the least protected image"
        notes = (KEYED, *composition.notes)
        found.append(formal_level(name, std=composition.least_std, distances=distances, delta=delta, notes=notes))
    return FormalSide(
        delta=delta,
        height=height,
        width=width,
        grey_step=grey_step,
        needed_std_at_1=needed_std(sensitivity=entire, epsilon=1.0, delta=delta),
        needed_std_at_8=needed_std(sensitivity=entire, epsilon=8.0, delta=delta),
        levels=tuple(found),
    )


def composition_of(stds: Sequence[float], *, source: str, notes: Sequence[str] = ()) -> Composition | None:
    """From the composed std of each audited image, infinity where nothing of it left; None where nothing left at all.

    `source` says in a few words what knows of the releases, `notes` what was taken for granted. They are composed
    already: independent releases add their inverse variances, levels of one secret field count as the least noisy one,
    and clean pixels leave a std of 0.
    """
    left = np.array([std for std in stds if std < math.inf], dtype=np.float64)
    if not len(left):
        return None
    bare = int((left == 0.0).sum())
    unprotected = (f"{bare} of {len(left)} images left without noise: nothing protects them",) if bare else ()
    return Composition(
        source=source,
        acquisitions=len(left),
        least_std=float(left.min()),
        median_std=float(np.median(left)),
        notes=(*unprotected, *notes),
    )
