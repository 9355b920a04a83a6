"""The noise: its law, its keys, and that it depends on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from veilray.errors import UsageError
from veilray.obfuscation.config import NoiseConfig
from veilray.obfuscation.noise import (
    NoiseDraw,
    add_gaussian,
    apply_draws,
    entropy_normal,
    fill_standard_normal,
    keyed_draw,
)


def _field(key: int, size: int = 128) -> torch.Tensor:
    field = torch.empty(1, size, size)
    fill_standard_normal(field, key=key)
    return field


def test_add_gaussian_has_the_stated_mean_and_std() -> None:
    x = torch.full((1, 1, 512, 512), 0.5)
    noise = add_gaussian(x, mean=0.1, std=0.2, clip=False, generator=torch.Generator().manual_seed(1)) - x
    count = noise.numel()
    assert abs(noise.mean().item() - 0.1) < 5 * 0.2 / count**0.5
    assert abs(noise.std().item() / 0.2 - 1) < 5 / (2 * count) ** 0.5


def test_add_gaussian_clamps_only_when_asked() -> None:
    x = torch.rand((2, 1, 64, 64), generator=torch.Generator().manual_seed(2))
    clipped = add_gaussian(x, mean=0.1, std=0.5, generator=torch.Generator().manual_seed(3))
    free = add_gaussian(x, mean=0.1, std=0.5, clip=False, generator=torch.Generator().manual_seed(3))
    assert torch.equal(clipped, free.clamp(0, 1))
    assert free.min() < 0
    assert free.max() > 1


def test_add_gaussian_does_not_touch_its_input_or_the_global_generator() -> None:
    x = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(4))
    before, state = x.clone(), torch.get_rng_state()
    add_gaussian(x, mean=0.1, std=0.2, generator=torch.Generator().manual_seed(5))
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("std", [0.0, -0.1, torch.tensor([0.1, -0.1])])
def test_std_must_be_positive(std: float | torch.Tensor) -> None:
    with pytest.raises(UsageError, match="positive"):
        add_gaussian(torch.zeros(2), mean=0.0, std=std)


@pytest.mark.parametrize("std", [0.0, -0.2, [0.3, 0.1], [0.0, 0.1], "much"])
def test_configuration_refuses_impossible_std(std: object) -> None:
    with pytest.raises(ValidationError):
        NoiseConfig.model_validate({"std": std})


@settings(max_examples=20)
@given(order=st.permutations(range(6)), split=st.integers(1, 5), epoch=st.integers(0, 3))
def test_noise_is_the_same_whatever_the_batching(order: list[int], split: int, epoch: int) -> None:
    config = NoiseConfig(std=(0.05, 0.4))
    clean = torch.rand((6, 1, 16, 16), generator=torch.Generator().manual_seed(6))
    draws = [keyed_draw(config, seed=7, epoch=epoch, image_id=f"image-{i}") for i in range(6)]
    whole = apply_draws(clean, draws, clip=True)
    parts = [order[:split], order[split:]]
    for part in parts:
        again = apply_draws(clean[part], [draws[i] for i in part], clip=True)
        assert torch.equal(again, whole[part])


def test_fields_of_other_keys_are_uncorrelated_and_normal() -> None:
    config = NoiseConfig()
    fields = {
        name: _field(keyed_draw(config, seed=seed, epoch=epoch, image_id=image_id).key).flatten().double().numpy()
        for name, seed, epoch, image_id in [("a", 1, 0, "x"), ("b", 2, 0, "x"), ("c", 1, 1, "x"), ("d", 1, 0, "y")]
    }
    correlation = np.corrcoef(np.stack(list(fields.values())))
    limit = 5 / fields["a"].size ** 0.5
    assert np.abs(correlation - np.eye(4)).max() < limit
    for field in fields.values():
        assert stats.kstest(field, "norm").pvalue > 1e-4


def test_keys_differ_in_more_than_32_bits() -> None:
    low_bits_equal = 2**32
    assert not torch.equal(_field(5), _field(5 + low_bits_equal))
    assert not torch.equal(_field(5), _field(5 + 2**64))


def test_fixed_noise_ignores_the_epoch_and_fresh_noise_does_not() -> None:
    fixed, fresh = NoiseConfig(fresh=False), NoiseConfig(fresh=True)
    assert keyed_draw(fixed, seed=1, epoch=3, image_id="x") == keyed_draw(fixed, seed=1, epoch=0, image_id="x")
    assert keyed_draw(fresh, seed=1, epoch=3, image_id="x") != keyed_draw(fresh, seed=1, epoch=0, image_id="x")


def test_std_range_is_covered_evenly() -> None:
    config = NoiseConfig(std=(0.05, 0.4))
    stds = [keyed_draw(config, seed=1, epoch=0, image_id=str(i)).std for i in range(2000)]
    assert stats.kstest(stds, stats.uniform(0.05, 0.35).cdf).pvalue > 1e-4


PINNED_KEY = 198313177783435101716574072632337036935
PINNED_FIELD = [0.03816712, -0.28006551, 0.45770299, -1.00484228]


def test_keyed_noise_never_changes_between_versions() -> None:
    # A run that is resumed, or an evaluation that is repeated years later, must meet the same noise.
    draw = keyed_draw(NoiseConfig(), seed=17, epoch=1, image_id="00000001_000")
    assert draw == NoiseDraw(key=PINNED_KEY, mean=0.1, std=0.2)
    assert _field(draw.key, size=2).flatten().tolist() == pytest.approx(PINNED_FIELD, abs=1e-7)


def test_entropy_noise_is_normal_far_into_the_tails_and_never_repeats() -> None:
    values = entropy_normal((1000, 1001))
    assert values.dtype == np.float32
    assert not np.array_equal(values, entropy_normal((1000, 1001)))
    flat = values.ravel().astype(np.float64)
    assert stats.kstest(flat, "norm").pvalue > 1e-6
    beyond = 2 * stats.norm.sf(4) * flat.size
    assert abs(np.sum(np.abs(flat) > 4) - beyond) < 6 * beyond**0.5
    # Sine and cosine of one pair must not be dependent.
    half = flat.size // 2
    assert abs(np.corrcoef(flat[:half], flat[half : 2 * half])[0, 1]) < 6 / half**0.5
    assert abs(np.corrcoef(flat[:half] ** 2, flat[half : 2 * half] ** 2)[0, 1]) < 6 / half**0.5
