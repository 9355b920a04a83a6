"""PSNR against scikit-image and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from veilray.errors import UsageError
from veilray.metrics.psnr import psnr


def _pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    return (target + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype), target.to(dtype)


@pytest.mark.parametrize("shape", [(3, 1, 32, 48), (2, 1, 17, 9), (1, 3, 8, 8), (1, 1, 1, 1)])
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_it_equals_scikit_image(shape: tuple[int, ...], data_range: float) -> None:
    output, target = _pair(*shape)
    expected = [
        peak_signal_noise_ratio(t.double().numpy(), o.double().numpy(), data_range=data_range)
        for o, t in zip(output, target, strict=True)
    ]
    np.testing.assert_allclose(psnr(output, target, data_range=data_range).numpy(), expected, rtol=1e-6)


def test_an_error_of_a_tenth_everywhere_is_twenty_decibels() -> None:
    target = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    assert psnr(target + 0.1, target).item() == pytest.approx(20.0, abs=1e-12)


def test_equality_is_infinite_and_only_for_the_equal_image() -> None:
    output, target = _pair(2, 1, 8, 8)
    output[0] = target[0]
    assert psnr(output, target).isinf().tolist() == [True, False]


def test_a_large_image_loses_nothing_to_rounding() -> None:
    target = torch.zeros(1, 1, 3000, 2500)
    exact = 20 * math.log10(1 / float(np.float32(1e-3)))
    assert psnr(target + 1e-3, target).item() == pytest.approx(exact, abs=1e-6)


def test_half_precision_does_not_underflow() -> None:
    target = torch.zeros(1, 1, 16, 16, dtype=torch.float16)
    assert psnr(target + 1e-4, target).item() == pytest.approx(80.0, abs=0.01)


def test_it_has_a_gradient() -> None:
    output, target = _pair(2, 1, 6, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: psnr(x, target), output.requires_grad_())


@pytest.mark.parametrize(
    ("output", "target", "data_range", "says"),
    [
        (torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 4, 4), 1.0, "same shape"),
        (torch.zeros(4, 4), torch.zeros(4, 4), 1.0, "(N, C, H, W)"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, 1, 4, 4, dtype=torch.uint8), 1.0, "floating"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.float64), 1.0, "same dtype"),
        (torch.zeros(1, 1, 0, 4), torch.zeros(1, 1, 0, 4), 1.0, "too small"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), 0.0, "data_range"),
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), math.nan, "data_range"),
    ],
)
def test_misuse_is_named(output: Tensor, target: Tensor, data_range: float, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        psnr(output, target, data_range=data_range)
    assert says in str(caught.value)
