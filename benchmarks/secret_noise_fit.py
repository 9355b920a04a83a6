"""The constants of `veilray.obfuscation.secret`: the normal quantile's fit by partial fractions, and how far it is off.

    python benchmarks/secret_noise_fit.py

With q = p - 1/2 the quantile is q times a function of q^2 that has a branch cut from 1/4 on. So sums of
residue / (pole - q^2) with poles on the cut and positive residues come near it quickly, and no sum cancels. Poles by
Levenberg-Marquardt, residues and constant by least squares within, weights raised where the error is large (Lawson),
until the largest error is about as small as so many terms allow. Errors are those of the distribution function; far
out, where they say little of the value, 0.04 times those of the value.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.special import ndtri

Values = npt.NDArray[np.float64]
TAIL = 2.0**-8
"""Probability on each side that is left to the exact inversion."""
_START = (0.0016, 0.0088, 0.035, 0.14, 0.9)
_LEAST_DENSITY = 0.04
_ROUNDS, _POINTS = 60, 400


def fit() -> tuple[Values, Values, float]:
    """Poles, (5,); residues and the constant, (6,); and a bound of the distribution function's error."""
    # Points crowd where the quantile bends: evenly in the logarithm of the distance from the cut.
    square = 0.25 - np.geomspace(0.25, 0.25 - (0.5 - TAIL) ** 2, _POINTS)[1:]
    centred = np.sqrt(square)
    quantile = ndtri(0.5 + centred)
    wanted, density = quantile / centred, np.exp(-(quantile**2) / 2) / np.sqrt(2 * np.pi)
    scale = np.maximum(density, _LEAST_DENSITY) * centred

    def solve(logarithms: Values, weights: Values) -> tuple[Values, Values]:
        terms = [1 / (0.25 + distance - square) for distance in np.exp(logarithms)]
        columns = np.column_stack([*terms, np.ones_like(square)])
        factors = np.linalg.lstsq(columns * weights[:, None], wanted * weights, rcond=None)[0]
        return factors, columns @ factors - wanted

    logarithms, weights = np.log(_START), scale.copy()
    best = (logarithms, np.empty(0), np.inf)
    for _ in range(_ROUNDS):
        given = weights
        found = least_squares(lambda values: solve(values, given)[1] * given * 1e7, logarithms, method="lm")  # noqa: B023
        logarithms = found.x
        factors, error = solve(logarithms, weights)
        off = np.abs(error * scale)
        if off.max() < best[2]:
            best = (0.25 + np.exp(logarithms), factors, float(off.max()))
        weights = weights * np.sqrt(off / off.max() + 1e-2)
        weights /= weights.max()
    return best


def main() -> None:
    """Print the constants and the error."""
    poles, factors, error = fit()
    for pole, residue in zip(poles, factors, strict=False):
        print(f"pole {pole:.9f}, residue {residue:.9e}")
    print(f"constant {factors[-1]:.9f}; the distribution function is off by at most {error:.1e}")


if __name__ == "__main__":
    main()
