"""Logistic regression: several scores of a pair as one, in log odds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from veilray.privacy.pairs import Codes, Pairs

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Logistic:
    """A fitted regression on standardised inputs."""

    mean: Floats
    scale: Floats
    slopes: Floats
    intercept: float

    @classmethod
    def fit(cls, inputs: Floats, truth: npt.NDArray[np.bool_], weights: Floats, *, penalty: float = 1e-2) -> Logistic:
        """From (M, K) inputs, what is true of each, (M,), and its weight, (M,); both classes weigh the same in all.

        Every input is one that speaks for the truth where it is high: slopes are 0 or more, so that inputs that say
        the same cannot be played off against each other. `penalty` is that of a squared slope, relative to a total
        weight of 1.
        """
        balanced = np.where(truth, weights / weights[truth].sum(), weights / weights[~truth].sum()) / 2.0
        mean = balanced @ inputs
        scale = np.sqrt(balanced @ (inputs - mean) ** 2) + 1e-12
        design = np.concatenate([np.ones((len(inputs), 1)), (inputs - mean) / scale], axis=1)
        shrunk = penalty * np.array([0.0] + [1.0] * inputs.shape[1])

        def loss(found: Floats) -> tuple[float, Floats]:
            odds = design @ found
            value = balanced @ (np.logaddexp(0.0, odds) - truth * odds) + 0.5 * shrunk @ found**2
            return float(value), design.T @ (balanced * (special.expit(odds) - truth)) + shrunk * found

        bounds = [(None, None)] + [(0.0, None)] * inputs.shape[1]
        done = optimize.minimize(loss, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds)
        return cls(mean=mean, scale=scale, slopes=done.x[1:], intercept=float(done.x[0]))

    def __call__(self, inputs: Floats) -> Floats:
        """Log odds: (M, K) -> (M,)."""
        odds: Floats = self.intercept + ((inputs - self.mean) / self.scale) @ self.slopes
        return odds


def pair_weights(pairs: Pairs, patients: Codes) -> Floats:
    """(M,): genuine pairs of one patient share the weight of one patient; impostor pairs weigh the same."""
    owners = patients[pairs.first]
    counts = np.bincount(owners[pairs.genuine], minlength=int(patients.max()) + 1)
    return np.where(pairs.genuine, 1.0 / np.maximum(counts[owners], 1), 1.0)
