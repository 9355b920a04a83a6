"""Stein's estimates against the true error, which the phantom and numerical integration give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn

from veilray.images.phantom import chest_phantom
from veilray.obfuscation.censored import latent_mean, log_likelihood
from veilray.obfuscation.noise import add_gaussian
from veilray.training.draws import sign_fields
from veilray.training.objectives.sure import sure_losses

MEAN = 0.1
DRAWS = 24
SIDE = 96


@pytest.fixture(scope="module")
def phantom() -> Tensor:
    return torch.from_numpy(chest_phantom(patient=1, follow_up=0, seed=3, size=SIDE))[None, None].double()


class Smoother(nn.Module):
    """A denoiser that is smooth, not linear, and not very good: two convolutions with a gate between them."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        kernel = torch.exp(-torch.linspace(-1.5, 1.5, 5, dtype=torch.float64).square())
        kernel = torch.outer(kernel, kernel)
        self.kernel = (kernel / kernel.sum())[None, None]
        self.strength = strength

    def forward(self, images: Tensor, known: Tensor) -> Tensor:
        y = images - known[:, :1, None, None]
        smooth = nn.functional.conv2d(y, self.kernel, padding=2)
        return smooth + self.strength * (y - smooth) * torch.sigmoid(8 * (y - smooth).square() - 1)


def _double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _estimates(
    phantom: Tensor, network: nn.Module, *, std: float, clip: bool, assumed_clip: bool
) -> tuple[Tensor, Tensor]:
    """The estimate and the true squared error of each of many noisy copies."""
    clean = phantom.expand(DRAWS, -1, -1, -1)
    noisy = add_gaussian(clean, mean=MEAN, std=std, clip=clip, generator=torch.Generator().manual_seed(1))
    known = torch.tensor([[MEAN, std]], dtype=torch.float64).expand(DRAWS, -1)
    signs = sign_fields([str(index) for index in range(DRAWS)], (SIDE, SIDE)).double()
    weight = torch.ones(DRAWS, dtype=torch.float64)
    estimates = sure_losses(network, noisy, known, signs=signs, weight=weight, clip=assumed_clip)
    errors = (network(noisy, known) - clean).square().mean(dim=(1, 2, 3))
    return estimates, errors


@pytest.mark.parametrize("std", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.5])
def test_without_a_clamp_it_is_the_squared_error_within_two_standard_errors(
    phantom: Tensor, std: float, strength: float
) -> None:
    estimates, errors = _estimates(phantom, Smoother(strength), std=std, clip=False, assumed_clip=False)
    difference = estimates - errors
    standard_error = difference.std() / math.sqrt(DRAWS)
    assert standard_error < 0.05 * errors.mean()
    assert difference.mean().abs() < 2 * standard_error


@pytest.mark.parametrize("std", [0.1, 0.2, 0.3])
def test_under_the_clamp_the_plain_estimate_is_far_off(phantom: Tensor, std: float) -> None:
    estimates, errors = _estimates(phantom, Smoother(0.0), std=std, clip=True, assumed_clip=False)
    difference = estimates - errors
    assert difference.mean().abs() > 10 * difference.std() / math.sqrt(DRAWS)
    assert difference.mean().abs() > 0.2 * errors.mean()


@pytest.mark.parametrize("std", [0.2, 0.3])
def test_under_the_clamp_the_plain_estimate_is_negative(phantom: Tensor, std: float) -> None:
    estimates, _ = _estimates(phantom, Smoother(0.0), std=std, clip=True, assumed_clip=False)
    assert estimates.mean() < 0


@pytest.mark.parametrize(("x", "std"), [(0.05, 0.1), (0.9, 0.1), (0.5, 0.2), (0.95, 0.3), (0.02, 0.3)])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.6, 0.3), (0.2, 0.4)])
def test_the_gradient_under_the_clamp_is_that_of_a_weighted_squared_error(
    x: float, std: float, scale: float, shift: float
) -> None:
    """One pixel, f(y) = scale y + shift: the expectation is an integral, the gradient in `scale` has both sides."""
    m = x + MEAN

    def expectation(of: object) -> float:
        inner = quad(lambda y: of(y) * norm.pdf(y, m, std), 0.0, 1.0, epsabs=1e-12)[0]
        return inner + of(0.0) * norm.cdf(-m / std) + of(1.0) * norm.sf((1 - m) / std)

    def likelihood(y: float, f: Tensor) -> Tensor:
        return log_likelihood(_double(y), m=f + MEAN, std=_double(std))

    def own_gradient(y: float) -> float:
        a = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        slope = a if 0 < y < 1 else 0.0 * a
        loss = -2 * std**2 * likelihood(y, a * y + shift) + 2 * std**2 * slope
        return torch.autograd.grad(loss, a)[0].item()

    def weighted_error(y: float) -> float:
        f = scale * y + shift
        latent = [latent_mean(_double(y), m=_double(at + MEAN), std=_double(std)).item() for at in (f, x)]
        return 2 * y * ((f - x) - (latent[0] - latent[1]))

    assert expectation(own_gradient) == pytest.approx(expectation(weighted_error), abs=1e-8)


@pytest.mark.parametrize("std", [0.1, 0.2, 0.3])
def test_the_loss_under_the_clamp_has_the_gradient_of_that_weighted_error(phantom: Tensor, std: float) -> None:
    """What the training calls, along the scale of a network's output: the probe is masked, and has its sign."""
    clean = phantom.expand(DRAWS, -1, -1, -1)
    noisy = add_gaussian(clean, mean=MEAN, std=std, clip=True, generator=torch.Generator().manual_seed(4))
    known = torch.tensor([[MEAN, std]], dtype=torch.float64).expand(DRAWS, -1)
    signs = sign_fields([str(index) for index in range(DRAWS)], (SIDE, SIDE)).double()
    smoother, ones = Smoother(1.5), torch.ones(DRAWS, dtype=torch.float64)

    def gradients(clip: bool) -> Tensor:
        scale = ones.clone().requires_grad_()

        def network(images: Tensor, told: Tensor) -> Tensor:
            return scale.repeat(len(images) // DRAWS).view(-1, 1, 1, 1) * smoother(images, told)

        losses = sure_losses(network, noisy, known, signs=signs, weight=ones, clip=clip)
        return torch.autograd.grad(losses.sum(), scale)[0]

    estimate = smoother(noisy, known)
    latent = [latent_mean(noisy, m=at + MEAN, std=_double(std)) for at in (estimate, clean)]
    truth = (2 * estimate * ((estimate - clean) - (latent[0] - latent[1]))).mean(dim=(1, 2, 3))
    difference, plain = gradients(clip=True) - truth, gradients(clip=False) - truth
    standard_error = difference.std() / math.sqrt(DRAWS)
    assert difference.mean().abs() < 2 * standard_error
    assert plain.mean().abs() > 12 * standard_error  # so that a wrong loss would show


def test_a_probe_on_every_second_image_counts_for_all(phantom: Tensor) -> None:
    clean = phantom.expand(4, -1, -1, -1)
    noisy = add_gaussian(clean, mean=MEAN, std=0.2, generator=torch.Generator().manual_seed(0))
    known = torch.tensor([[MEAN, 0.2]], dtype=torch.float64).expand(4, -1)
    signs = sign_fields(list("abcd"), (SIDE, SIDE)).double()
    network = Smoother(0.5)

    def total(weight: list[float]) -> Tensor:
        return sure_losses(network, noisy, known, signs=signs, weight=torch.tensor(weight).double(), clip=True)

    none, odd, even, both = (total(w) for w in ([0, 0, 0, 0], [2, 0, 2, 0], [0, 2, 0, 2], [1, 1, 1, 1]))
    torch.testing.assert_close((odd + even) / 2, both)
    torch.testing.assert_close(odd[1::2], none[1::2])


def test_likelihood_and_latent_mean_are_those_of_an_integral() -> None:
    rng = np.random.default_rng(0)
    for m, std in zip(rng.uniform(-0.3, 1.4, 12), rng.uniform(0.05, 0.4, 12), strict=True):
        at = {"m": torch.tensor(m, requires_grad=True), "std": torch.tensor(std)}
        law = norm(m, std)
        for y, low, high in ((0.0, m - 12 * std, 0.0), (1.0, 1.0, m + 12 * std)):
            mass = quad(law.pdf, low, high)[0]
            moment = law.expect(lambda z: z, lb=low, ub=high)
            log_mass = log_likelihood(_double(y), **at)
            assert log_mass.exp().item() == pytest.approx(mass, rel=1e-6, abs=1e-12)
            slope = torch.autograd.grad(log_mass, at["m"])[0].item()
            if mass > 1e-9:
                assert latent_mean(_double(y), **at).item() == pytest.approx(moment / mass, rel=1e-4)
                assert m + std**2 * slope == pytest.approx(moment / mass, rel=1e-4)
        inner = log_likelihood(torch.tensor(0.4).double(), **at)
        assert inner.item() == pytest.approx(norm.logpdf(0.4, m, std))


def test_the_likelihood_stays_finite_in_float32_far_from_the_pixel() -> None:
    m = torch.tensor([-20.0, 20.0], requires_grad=True)
    value = log_likelihood(torch.tensor([1.0, 0.0]), m=m, std=torch.tensor(0.05))
    value.sum().backward()
    assert bool(value.isfinite().all())
    assert bool(m.grad.isfinite().all())
