"""The accountant against dp-accounting, against high-precision arithmetic, and against itself backwards."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from dp_accounting import get_epsilon_gaussian, get_sigma_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from veilray.errors import UsageError
from veilray.exchange.ledger.exposure import Given
from veilray.exchange.ledger.exposure import composed_std as composed_by_ledger
from veilray.privacy.accounting import (
    composed_std,
    gaussian_epsilon,
    gaussian_mu,
    gaussian_mu_for,
    log_delta,
    needed_std,
    protected_sensitivity,
)

TOLERANCE = 1e-6


def _exact_log_delta(mu: float, epsilon: float) -> mpmath.mpf:
    """Balle and Wang's theorem 8 as it is written, with 80 digits."""
    m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
    above = mpmath.erfc(-(m / 2 - e / m) / mpmath.sqrt(2)) / 2
    below = mpmath.erfc((m / 2 + e / m) / mpmath.sqrt(2)) / 2
    return mpmath.log(above - mpmath.exp(e) * below)


def _exact_epsilon(mu: float, delta: float, near: float) -> float:
    target = mpmath.log(mpmath.mpf(delta))
    ends = (mpmath.mpf(near), mpmath.mpf(near) * (1 + mpmath.mpf(10) ** -6))
    return float(mpmath.findroot(lambda e: _exact_log_delta(mu, e) - target, ends, tol=1e-40))


@pytest.mark.parametrize("mu", [0.01, 0.1, 0.5, 1.0, 3.7, 10.0, 40.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_epsilon_is_that_of_dp_accounting(mu: float, delta: float) -> None:
    assert gaussian_epsilon(mu=mu, delta=delta) == pytest.approx(
        get_epsilon_gaussian(1.0 / mu, delta), rel=TOLERANCE, abs=1e-9
    )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 100.0])
def test_the_needed_noise_is_that_of_dp_accounting(epsilon: float) -> None:
    mine = needed_std(sensitivity=256.0, epsilon=epsilon, delta=1e-5)
    assert mine == pytest.approx(256.0 * get_sigma_gaussian(epsilon, 1e-5), rel=TOLERANCE)


# From one grey level of one pixel under heavy noise to any image of 4096 x 4096 under hardly any.
@pytest.mark.parametrize("mu", [1e-6, 3e-5, 1e-3, 1 / 255 / 0.3, 1.0, 53.0, 853.0, 2560.0, 1e5])
@pytest.mark.parametrize("delta", [1e-300, 1e-30, 1e-5])
def test_epsilon_is_the_closed_form_in_high_precision(mu: float, delta: float) -> None:
    with mpmath.workdps(80):
        epsilon = gaussian_epsilon(mu=mu, delta=delta)
        if epsilon == 0.0:
            assert _exact_log_delta(mu, 0.0) <= mpmath.log(mpmath.mpf(delta))
        else:
            assert epsilon == pytest.approx(_exact_epsilon(mu, delta, epsilon), rel=TOLERANCE)


@pytest.mark.parametrize(("mu", "epsilon"), [(1e-5, 1e-9), (1e-4, 3e-4), (0.3, 2.0), (5.0, 0.0), (900.0, 4.2e5)])
def test_delta_is_the_closed_form_in_high_precision(mu: float, epsilon: float) -> None:
    with mpmath.workdps(80):
        assert log_delta(mu=mu, epsilon=epsilon) == pytest.approx(float(_exact_log_delta(mu, epsilon)), rel=TOLERANCE)


@settings(max_examples=60)
@given(st.floats(-4.0, 5.0), st.floats(-60.0, -1.0))
def test_what_is_protected_and_what_is_needed_lead_back(log_mu: float, log_of_delta: float) -> None:
    mu, delta = 10.0**log_mu, 10.0**log_of_delta
    epsilon = gaussian_epsilon(mu=mu, delta=delta)
    if epsilon > 1e-12:
        assert gaussian_mu_for(epsilon=epsilon, delta=delta) == pytest.approx(mu, rel=TOLERANCE)
    distance = protected_sensitivity(std=0.2, epsilon=1.0, delta=delta)
    assert needed_std(sensitivity=distance, epsilon=1.0, delta=delta) == pytest.approx(0.2, rel=TOLERANCE)


def test_more_noise_and_less_difference_protect_more() -> None:
    epsilons = [gaussian_epsilon(mu=gaussian_mu(sensitivity=16.0, std=std), delta=1e-5) for std in (0.1, 0.2, 0.3, 5.0)]
    assert epsilons == sorted(epsilons, reverse=True)
    assert epsilons[0] > 1000
    assert gaussian_epsilon(mu=1e-6, delta=1e-5) == 0.0  # the delta alone is enough


def test_releases_compose_as_the_ledger_composes_them() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        fields = {
            f"field {place}": rng.choice([0.1, 0.2, 0.3], rng.integers(1, 4)) for place in range(rng.integers(1, 5))
        }
        given = [
            Given(release_id="r", mode="noisy", field=name, geometry="", mean=0.1, std=float(std), clip=True)
            for name, stds in fields.items()
            for std in stds
        ]
        assert composed_std(list(stds) for stds in fields.values()) == pytest.approx(composed_by_ledger(given))


def test_independent_releases_wear_the_noise_off_and_nested_ones_do_not() -> None:
    assert composed_std([[0.2]] * 4) == pytest.approx(0.1)
    assert composed_std([[0.2, 0.3, 0.3, 0.2]]) == pytest.approx(0.2)
    assert composed_std([]) == math.inf
    assert composed_std([[0.2], [0.0]]) == 0.0
    # mu adds in squares over independent releases (Dong, Roth, Su, corollary 3.3).
    apart = math.hypot(gaussian_mu(sensitivity=1.0, std=0.1), gaussian_mu(sensitivity=1.0, std=0.3))
    assert gaussian_mu(sensitivity=1.0, std=composed_std([[0.1], [0.3]])) == pytest.approx(apart)


@pytest.mark.parametrize(("mu", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (math.inf, 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_impossible_settings_are_refused(mu: float, delta: float) -> None:
    with pytest.raises(UsageError):
        gaussian_epsilon(mu=mu, delta=delta)
