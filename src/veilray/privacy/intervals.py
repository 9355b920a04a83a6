"""Means and shares over patients, each weighted equally whatever the number of its images, with their intervals.

The percentile bootstrap over patients (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Where
every patient has the same value, which a bootstrap takes for certainty, a share of 0 or 1 gets the exact interval of
Clopper and Pearson (Biometrika 26 (1934) 404-413) over the patients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from veilray.errors import UsageError
from veilray.metrics.interval import Interval
from veilray.metrics.statistics import clustered_bootstrap

CONFIDENCE = 0.95
RESAMPLES = 2000


def patient_means(
    values: npt.NDArray[np.floating], patients: Sequence[str] | npt.NDArray[np.generic]
) -> npt.NDArray[np.float64]:
    """The mean value of each patient: (n,) values with their n patients -> (m,), in the order of the sorted names."""
    names = np.asarray(patients)
    if values.ndim != 1 or names.shape != values.shape or not len(values):
        raise UsageError(f"there must be a patient for each value, not {names.shape} for {values.shape}")
    _, index = np.unique(names, return_inverse=True)
    means: npt.NDArray[np.float64] = np.bincount(index, weights=values.astype(np.float64)) / np.bincount(index)
    return means


def certain_reach(patients: int) -> float:
    """The lower end of the exact interval of a share that is 1 for so many patients, each of them."""
    return float(((1.0 - CONFIDENCE) / 2.0) ** (1.0 / patients))


def over_patients(
    values: npt.NDArray[np.floating],
    patients: Sequence[str] | npt.NDArray[np.generic],
    *,
    share: bool,
    seed: int = 0,
) -> tuple[float, float | None, float | None]:
    """The mean over patients of their means, and the ends of its 95 % interval; None where there is one patient.

    `share`: whether the values are successes, from 0 to 1. DataError for values that are not finite.
    """
    means = patient_means(values, patients)
    mean = float(means.mean())
    if len(means) < 2:
        return mean, None, None
    if share and bool((means == means[0]).all()) and means[0] in (0.0, 1.0):
        reach = certain_reach(len(means))
        return (mean, reach, 1.0) if mean else (mean, 0.0, 1.0 - reach)
    found: Interval = clustered_bootstrap(
        means, np.arange(len(means)), resamples=RESAMPLES, seed=seed, confidence=CONFIDENCE
    )
    return found.mean, found.low, found.high
