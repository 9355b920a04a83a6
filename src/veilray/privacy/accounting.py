"""What Gaussian noise promises formally: differential privacy by the analytic Gaussian mechanism, exactly.

Noise of standard deviation std on images that differ by at most `sensitivity` in L2 is mu-Gaussian differentially
private with mu = sensitivity / std (Dong, Roth, Su, Journal of the Royal Statistical Society B 84 (2022) 3-37), which
is (epsilon, delta)-differentially private exactly where (Balle and Wang, ICML 2018, theorem 8)
    delta >= Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu).
With t = epsilon / mu - mu / 2 both terms share the normal density phi(t), so that
    delta = phi(t) (R(t) - R(t + mu)),  R(x) = (1 - Phi(x)) / phi(x), Mills' ratio,
in which nothing overflows and nothing but the difference cancels; where mu is small that is expanded about its middle.

Everything that is done to a noisy image afterwards, such as the clamp, rounding or denoising, changes nothing of this,
and neither does the mean, which everybody may know. Noise drawn from a key is Gaussian to those who lack the key, as
far as the cipher holds: a computational promise. Floating-point noise is Gaussian up to rounding (Mironov, CCS 2012).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from scipy.optimize import brentq
from scipy.special import erfcx, log_ndtr, ndtri_exp

from veilray.errors import UsageError

DELTA = 1e-5
"""The delta at which epsilons are given, unless another is asked for."""

_SMALL = 1e-4
_LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_RTOL = 4.0 * 2.0**-52


def gaussian_mu(*, sensitivity: float, std: float) -> float:
    """mu of Gaussian differential privacy. UsageError unless both are positive and finite."""
    if not (0.0 < sensitivity < math.inf and 0.0 < std < math.inf):
        raise UsageError(f"sensitivity {sensitivity} and std {std} must be positive and finite")
    return sensitivity / std


def log_delta(*, mu: float, epsilon: float) -> float:
    """The logarithm of the smallest delta that goes with an epsilon >= 0; minus infinity where it is beyond floats.

    UsageError for a mu that is not positive and an epsilon that is negative.
    """
    if not (mu > 0.0 and epsilon >= 0.0 and math.isfinite(mu) and math.isfinite(epsilon)):
        raise UsageError(f"mu {mu} must be positive, epsilon {epsilon} not negative, and both finite")
    return _log_delta(mu, epsilon / mu)


def gaussian_epsilon(*, mu: float, delta: float) -> float:
    """The smallest epsilon that goes with a delta; 0 where the delta alone is enough.

    UsageError for a mu that is not positive and a delta not between 0 and 1.
    """
    _check_delta(delta)
    if not 0.0 < mu < math.inf:
        raise UsageError(f"mu {mu} must be positive and finite")
    target = math.log(delta)
    if _log_delta(mu, 0.0) <= target:
        return 0.0
    # delta <= 1 - Phi(t), so the root lies below the t at which that is delta.
    highest = max(-float(ndtri_exp(target)), -mu / 2.0) + mu / 2.0
    root = brentq(lambda s: _log_delta(mu, s) - target, 0.0, highest * (1.0 + 1e-9) + 1e-12, xtol=1e-300, rtol=_RTOL)
    return mu * float(root)


def gaussian_mu_for(*, epsilon: float, delta: float) -> float:
    """The largest mu that is (epsilon, delta)-differentially private, epsilon >= 0.

    UsageError for an epsilon that is negative and a delta not between 0 and 1.
    """
    _check_delta(delta)
    if not 0.0 <= epsilon < math.inf:
        raise UsageError(f"epsilon {epsilon} must be finite and not negative")
    target = math.log(delta)

    def excess(log_mu: float) -> float:
        mu = math.exp(log_mu)
        return _log_delta(mu, epsilon / mu) - target

    low = high = math.log(math.sqrt(2.0 * epsilon) if epsilon else 1.0)
    while excess(low) > 0.0:
        low -= 4.0
    while excess(high) < 0.0:
        high += 1.0
    return math.exp(float(brentq(excess, low, high, xtol=1e-300, rtol=_RTOL)))


def protected_sensitivity(*, std: float, epsilon: float, delta: float) -> float:
    """The largest L2 distance between two images that the noise hides at (epsilon, delta)."""
    if not 0.0 < std < math.inf:
        raise UsageError(f"std {std} must be positive and finite")
    return std * gaussian_mu_for(epsilon=epsilon, delta=delta)


def needed_std(*, sensitivity: float, epsilon: float, delta: float) -> float:
    """The standard deviation of the noise that hides an L2 distance at (epsilon, delta)."""
    if not 0.0 < sensitivity < math.inf:
        raise UsageError(f"sensitivity {sensitivity} must be positive and finite")
    return sensitivity / gaussian_mu_for(epsilon=epsilon, delta=delta)


def composed_std(fields: Iterable[Sequence[float]]) -> float:
    """The std of the one noisy image that says as much as all that were given out of one original.

    Each entry holds the levels given out of one noise field. Levels of one nested field say together no more than the
    least noisy one; independent fields add their inverse variances. Infinity for nothing, 0 where a level is 0, which
    is the clean image. UsageError for a negative or undefined level.
    """
    least = [min(levels) for levels in fields if len(levels)]
    if not all(level >= 0.0 for level in least):
        raise UsageError("levels of noise must not be negative")
    if 0.0 in least:
        return 0.0
    precision = math.fsum(level**-2 for level in least)
    return precision**-0.5 if precision else math.inf


def _log_delta(mu: float, s: float) -> float:
    """`s` is epsilon / mu."""
    t = s - mu / 2.0
    if t < 0.0:
        # Here the two terms differ by orders of magnitude, or mu is small and so is |t|.
        upper = float(log_ndtr(-t))
        if mu < _SMALL:
            return _log_density(t) + math.log(_mills_drop(t, mu))
        lower = _log_density(t) + math.log(_mills(t + mu))
        return upper + math.log(-math.expm1(lower - upper)) if lower < upper else -math.inf
    drop = _mills_drop(t, mu)
    return _log_density(t) + math.log(drop) if drop > 0.0 else -math.inf


def _mills(x: float) -> float:
    return math.sqrt(math.pi / 2.0) * float(erfcx(x / math.sqrt(2.0)))


def _mills_drop(t: float, mu: float) -> float:
    """R(t) - R(t + mu)."""
    if mu >= _SMALL * max(1.0, t):
        return _mills(t) - _mills(t + mu)
    # About the middle: R' = x R - 1, R''' = (x^3 + 3 x) R - x^2 - 2; the next term is of order mu^4 relative to these.
    x = t + mu / 2.0
    first = _one_less_x_mills(x)
    ratio = _mills(x)
    third = (x**2 + 2.0) - (x**3 + 3.0 * x) * ratio
    return mu * first + mu**3 / 24.0 * third


def _one_less_x_mills(x: float) -> float:
    """1 - x R(x), which is about 1 / x^2 for large x."""
    if x < 30.0:
        return 1.0 - x * _mills(x)
    inverse = x**-2
    return inverse * (1.0 - inverse * (3.0 - inverse * (15.0 - inverse * (105.0 - inverse * 945.0))))


def _log_density(t: float) -> float:
    return -0.5 * t * t - _LOG_ROOT_TWO_PI


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise UsageError(f"delta {delta} must lie between 0 and 1")
