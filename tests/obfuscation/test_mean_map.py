"""The clamp's mean map against simulation, quadrature and its own inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from veilray.errors import UsageError
from veilray.obfuscation.mean_map import inverse_mean_map, mean_map
from veilray.obfuscation.noise import add_gaussian

LEVELS = [(0.1, 0.1), (0.1, 0.2), (0.1, 0.3), (0.0, 0.02), (-0.2, 0.5)]


def _weighted_density(y: float, mean: float, std: float) -> float:
    return float(y * stats.norm.pdf(y, mean, std))


@pytest.mark.parametrize(("mean", "std"), LEVELS)
def test_equals_the_integral_of_its_definition(mean: float, std: float) -> None:
    for x in (0.0, 0.03, 0.5, 0.97, 1.0):
        inner, _ = integrate.quad(_weighted_density, 0, 1, args=(x + mean, std), epsabs=1e-12, limit=200)
        expected = inner + stats.norm.sf(1, x + mean, std)
        got = mean_map(torch.tensor([x], dtype=torch.float64), mean=mean, std=std).item()
        assert got == pytest.approx(expected, abs=1e-9)


def test_equals_the_average_of_obfuscated_pixels() -> None:
    x = torch.linspace(0, 1, 11, dtype=torch.float64).view(-1, 1).expand(-1, 200_000).contiguous()
    y = add_gaussian(x, mean=0.1, std=0.2, generator=torch.Generator().manual_seed(1))
    error = y.mean(1) - mean_map(x[:, 0], mean=0.1, std=0.2)
    assert error.abs().max() < 5 * 0.2 / 200_000**0.5


@pytest.mark.parametrize(("std", "low", "high"), [(0.1, 0.108, 0.992), (0.2, 0.140, 0.960), (0.3, 0.176, 0.924)])
def test_spans_the_known_ranges(std: float, low: float, high: float) -> None:
    ends = mean_map(torch.tensor([0.0, 1.0]), mean=0.1, std=std)
    assert ends.tolist() == pytest.approx([low, high], abs=6e-4)


@pytest.mark.slow
@settings(max_examples=60)
@given(mean=st.floats(-0.3, 0.3), std=st.floats(0.02, 0.5))
def test_inverse_undoes_the_map(mean: float, std: float) -> None:
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    y = mean_map(x, mean=mean, std=std)
    assert (y.diff() > -1e-15).all()
    back = inverse_mean_map(y, mean=mean, std=std)
    # Where the clamp has flattened the map, what float64 can hold of y bounds what can be had back of x.
    slope = stats.norm.cdf((1 - mean - x.numpy()) / std) - stats.norm.cdf((-mean - x.numpy()) / std)
    assert np.all(np.abs(back.numpy() - x.numpy()) * slope < 1e-12)


def test_values_outside_the_span_go_to_the_ends() -> None:
    y = torch.tensor([-1.0, 0.0, 0.1, 0.97, 2.0])
    assert inverse_mean_map(y, mean=0.1, std=0.2).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_keeps_dtype_and_shape() -> None:
    x = torch.rand((2, 1, 3, 5), generator=torch.Generator().manual_seed(2))
    assert mean_map(x, mean=0.1, std=0.2).shape == x.shape
    assert inverse_mean_map(x, mean=0.1, std=0.2).dtype == torch.float32


@pytest.mark.parametrize("function", [mean_map, inverse_mean_map])
@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_std_must_be_positive(function: object, std: float) -> None:
    with pytest.raises(UsageError, match="positive"):
        function(torch.zeros(1), mean=0.1, std=std)  # type: ignore[operator]
