"""Stein's unbiased risk estimate (Stein, Annals of Statistics 9(6), 1981), and its form for clamped noise.

`sure`, for releases without a clamp. With y = x + mean + n, n ~ N(0, std^2), N pixels and the network f,
    E |f(y) - x|^2 = E [ |f(y) + mean - y|^2 + 2 std^2 div f(y) ] - N std^2.
The divergence is measured along one random field b of signs (Ramani, Blu and Unser, IEEE TIP 17(9), 2008; training by
it: Soltanayev and Chun, NeurIPS 2018):
    div f(y) = E [ b . (f(y + eps b) - f(y)) / eps ],
unbiased but for a term in eps^2, the third moments of signs being 0.

`censored_sure`, for clamped releases, y = clip(x + mean + n, 0, 1). There Stein's identity needs the value before the
clamp, and the estimate above is too small: by a quarter of the error at std 0.1, by more than all of it from 0.2 on.
The squared residual gives way to the likelihood of clamped noise (`obfuscation.censored`), and the divergence counts
where the clamp left pixels alone:
    L(y) = -2 std^2 log p(y | f(y) + mean) + 2 std^2 sum over {0 < y_i < 1} of df_i / dy_i.
By Stein's identity for the value z before the clamp, its gradient is, in expectation and exactly,
    E grad L = 2 E sum_i (grad f_i) (f_i - x_i) (1 - r_i),
    r_i = (E[z | y_i, f_i] - E[z | y_i, x_i]) / (f_i - x_i) where the clamp cut y_i off, 0 elsewhere,
which is the gradient of the squared error with weights 1 - r_i in (0, 1] that lie on the pixels at 0 and 1. They depend
on y_i, which leaves the best estimate E[x | y] where it is, and weakly on x_i and f_i, which moves it by what is of
second order in f - x. So it is no unbiased estimate of the squared error, and says how networks rank, not how good they
are. Without clamped pixels it is `sure`. Derivation: docs/explanation/training-without-clean-images.md.

The probe doubles the work of an image. `train.probe_every` leaves it to every k-th image of a batch, which then counts
for all: unbiased still, at 1 + 1/k times the supervised work.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from veilray.obfuscation.censored import inside, log_likelihood
from veilray.training.objectives.network import Network

STEP = 0.01
"""eps, as a multiple of the noise's standard deviation."""


def sure_losses(network: Network, noisy: Tensor, known: Tensor, *, signs: Tensor, weight: Tensor, clip: bool) -> Tensor:
    """The estimate for each image, its mean over the pixels: (N,), in units of the squared error.

    `noisy`: (N, 1, H, W). `known`: (N, 2), mean and std of the noise. `signs`: (N, 1, H, W), the probe, -1 or 1.
    `weight`: (N,), how much an image's divergence counts; where it is 0 none is measured. `clip`: whether the noise was
    clamped, which chooses between the two estimates.
    """
    probed = weight.nonzero().flatten()
    mean, std = (column.view(-1, 1, 1, 1) for column in known.to(noisy.dtype).unbind(dim=1))
    probe = signs * inside(noisy) if clip else signs
    step, probe = STEP * std[probed], probe[probed]
    # One pass for both, so that a network that normalises over the batch sees both alike. Images that are probed weigh
    # twice in its statistics, and that these depend on y is left out of the divergence, as over a large batch it may.
    estimates = network(torch.cat([noisy, noisy[probed] + step * probe]), torch.cat([known, known[probed]]))
    estimate, moved = estimates[: len(noisy)], estimates[len(noisy) :]
    divergence = (probe * (moved - estimate[probed]) / step).mean(dim=(1, 2, 3))
    scaled = 2 * std[probed, 0, 0, 0].square() * weight[probed] * divergence
    return residuals(noisy, estimate, mean=mean, std=std, clip=clip).index_add(0, probed, scaled)


def residuals(noisy: Tensor, estimate: Tensor, *, mean: Tensor, std: Tensor, clip: bool) -> Tensor:
    """The part of the estimate without the divergence, of each image: (N, 1, H, W) twice -> (N,).

    `mean`, `std`: (N, 1, 1, 1).
    """
    if not clip:
        return ((estimate + mean - noisy).square() - std.square()).mean(dim=(1, 2, 3))
    surprise = -2 * std.square() * log_likelihood(noisy, m=estimate + mean, std=std)
    # What a density adds that a squared error has not, and the noise's own variance.
    aside = std.square() * (1 + 2 * torch.log(std * math.sqrt(2 * math.pi)))
    return (surprise - aside * inside(noisy)).mean(dim=(1, 2, 3))
