"""Statistics of per-image scores: intervals and tests that know that images of one patient are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from veilray.errors import DataError, UsageError
from veilray.metrics.interval import Interval

Values = npt.NDArray[np.floating]
Labels = Sequence[str] | Sequence[int] | npt.NDArray[np.generic]

# Draws held in memory at a time.
_DRAWS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Two methods on the same images."""

    difference: Interval
    """Mean over the images of first minus second, with its clustered bootstrap interval."""
    p_value: float
    """Wilcoxon's signed-rank test on the patients' mean differences, two-sided; 1 where all of them are 0."""
    share_won: float
    """Share of images on which the first is better; a tie counts half."""
    n_images: int
    n_patients: int


def clustered_bootstrap(
    values: Values, clusters: Labels, *, resamples: int = 2000, seed: int, confidence: float = 0.95
) -> Interval:
    """Mean of all values with the percentile interval of a bootstrap that draws whole clusters, with replacement.

    `values` is (n,), `clusters` n labels, such as each image's patient. A resample's mean is that of all the images of
    its patients, so patients with more images weigh more, as they do in the mean itself (Davison and Hinkley,
    Bootstrap Methods and their Application, 1997, section 3.8). Raises DataError for values that are not finite (an
    infinite PSNR has no mean) and for a single cluster, about whose variation nothing is known; UsageError for lengths
    that differ and for impossible settings.
    """
    labels = np.asarray(clusters)
    if values.ndim != 1 or labels.shape != values.shape or not len(values):
        raise UsageError(f"a bootstrap needs n values and n labels, not {values.shape} and {labels.shape}")
    if resamples < 1 or not 0.0 < confidence < 1.0:
        raise UsageError(f"resamples = {resamples}, confidence = {confidence}: give at least 1, and a share below 1")
    _check_finite(values)
    sums, counts = _per_cluster(values.astype(np.float64), labels)
    if len(sums) < 2:
        raise DataError("all images are of one patient: an interval needs at least two; evaluate a larger set")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    at_once = max(1, _DRAWS // len(sums))
    for first in range(0, resamples, at_once):
        drawn = generator.integers(len(sums), size=(min(at_once, resamples - first), len(sums)))
        means[first : first + len(drawn)] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(mean=float(sums.sum() / counts.sum()), low=float(low), high=float(high))


def paired_comparison(
    first: Values,
    second: Values,
    clusters: Labels,
    *,
    higher_is_better: bool,
    resamples: int = 2000,
    seed: int,
    confidence: float = 0.95,
) -> PairedComparison:
    """Compare two methods' scores on the same n images.

    `first` and `second` are (n,), or (seeds, n), which are averaged over the seeds first, image by image; `clusters`
    are n labels. Patients whose mean difference is 0 keep their rank but give it to neither side (Pratt, JASA 54
    (1959) 655-667). Raises what `clustered_bootstrap` raises.
    """
    _check_finite(first)
    _check_finite(second)
    mine, other = _seed_average(first), _seed_average(second)
    if mine.shape != other.shape:
        raise UsageError(f"paired scores must be of the same images: there are {mine.size} and {other.size}")
    differences = mine - other
    interval = clustered_bootstrap(differences, clusters, resamples=resamples, seed=seed, confidence=confidence)
    sums, counts = _per_cluster(differences, np.asarray(clusters))
    gains = differences if higher_is_better else -differences
    return PairedComparison(
        difference=interval,
        p_value=_signed_rank(sums / counts),
        share_won=float(np.mean((np.sign(gains) + 1.0) / 2.0)),
        n_images=len(differences),
        n_patients=len(sums),
    )


def smallest_p_value(n_patients: int, *, tests: int) -> float:
    """The least p-value that a paired comparison of so many patients can have, after Holm's correction over `tests`.

    Where one of two methods is better on every patient, each of the 2^n sets of signs is as likely by chance. All tests
    being of the same patients, Holm's least is that of the first step, `tests` times as large.
    """
    return min(1.0, tests * 2.0 ** (1 - n_patients))


def holm(p_values: Sequence[float] | Values) -> npt.NDArray[np.float64]:
    """P-values adjusted for testing all of them, in the order given: (m,) -> (m,).

    Holm's step-down procedure (Scandinavian J. Statistics 6 (1979) 65-70): the k-th smallest is multiplied by
    m - k + 1, made no smaller than those before it, and cut at 1. Raises UsageError for values outside [0, 1].
    """
    given = np.asarray(p_values, dtype=np.float64)
    if given.ndim != 1 or not np.all((given >= 0.0) & (given <= 1.0)):
        raise UsageError("Holm's correction needs a list of p-values between 0 and 1")
    order = np.argsort(given, kind="stable")
    stepped = given[order] * np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def _per_cluster(
    values: npt.NDArray[np.float64], labels: npt.NDArray[np.generic]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sum and number of the values of each cluster, by sorted label."""
    _, index = np.unique(labels, return_inverse=True)
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.float64)


def _seed_average(scores: Values) -> npt.NDArray[np.float64]:
    if scores.ndim not in (1, 2) or not scores.size:
        raise UsageError(f"scores must be (n,) or (seeds, n), not {scores.shape}")
    average: npt.NDArray[np.float64] = np.atleast_2d(scores).mean(axis=0, dtype=np.float64)
    return average


def _signed_rank(differences: npt.NDArray[np.float64]) -> float:
    # scipy divides by zero where nothing differs; there the data say nothing against equality.
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt").pvalue)


def _check_finite(values: Values) -> None:
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise DataError(
            f"{bad} of {values.size} scores are not finite (PSNR is infinite where an output equals its target "
            "exactly); leave those images out"
        )
