"""Each way to undo noise succeeds on naive noise, and fails on noise that it has no hold on."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from tests.privacy.phantoms import phantom_data

from veilray.obfuscation.secret import secret_field
from veilray.privacy import reconstruction
from veilray.privacy.data import AuditData, Variant
from veilray.privacy.extent import QUICK
from veilray.privacy.noise_trial import seeded_field
from veilray.privacy.recovery import averages, find_seeds, subtracted, without_field
from veilray.privacy.results import AttackResult, Skipped
from veilray.privacy.scoring import psnr_of
from veilray.privacy.variants import clean_variant, simulated_variant

SEEDS = (1, 2)
SECRET = bytes(range(32))


def _run(data: AuditData, *variants: Variant, **options: object) -> list[AttackResult | Skipped]:
    found: list[AttackResult | Skipped] = []
    for one in variants:
        found += reconstruction.run(data, one, extent=QUICK, seeds=SEEDS, progress=lambda _: None, **options)  # type: ignore[arg-type]
    return found


def _nested(data: AuditData, std: float) -> np.ndarray:
    fields = [
        secret_field(secret=SECRET, digest=bytes([row]) * 32, geometry="native", std=std, shape=data.size)
        for row in range(len(data))
    ]
    return np.clip(data.clean(np.arange(len(data))) + 0.1 + np.stack(fields), 0.0, 1.0)


def test_fresh_noise_averages_out_by_its_number() -> None:
    data = phantom_data(4)
    clean, rng = data.clean(np.arange(4)), np.random.default_rng(1)
    fresh = (np.clip(clean + 0.1 + 0.2 * rng.standard_normal(clean.shape), 0, 1).astype(np.float32) for _ in range(64))
    scores = {
        count: psnr_of(found, clean).mean()
        for count, found in averages(fresh, (1, 16, 64), mean=0.1, std=0.2, clip=True)
    }
    # The error's variance falls by the number of releases: 6 dB with every fourfold.
    assert scores[64] - scores[16] == pytest.approx(6.0, abs=0.6)
    assert scores[64] > 30


def test_the_same_noise_again_says_nothing_new() -> None:
    data = phantom_data(4)
    clean, noisy = data.clean(np.arange(4)), _nested(data, 0.2).astype(np.float32)
    found = dict(averages([noisy] * 16, (1, 16), mean=0.1, std=0.2, clip=True))
    assert psnr_of(found[16], clean) == pytest.approx(psnr_of(found[1], clean), abs=1e-3)


def test_two_levels_of_one_scaled_field_give_the_image_away_and_nested_ones_do_not() -> None:
    data = phantom_data(4)
    clean = data.clean(np.arange(4))
    field = np.random.default_rng(2).standard_normal(clean.shape).astype(np.float32)
    weak, strong = (np.clip(clean + 0.1 + std * field, 0.0, 1.0) for std in (0.1, 0.2))
    law = {"mean": 0.1, "weak_std": 0.1, "strong_std": 0.2}
    naive = psnr_of(subtracted(weak, strong, **law, clip=True), clean)
    nested = psnr_of(subtracted(_nested(data, 0.1), _nested(data, 0.2), **law, clip=True), clean)
    alone = psnr_of(np.clip(weak - 0.1, 0.0, 1.0), clean)
    assert naive.min() > 28
    assert nested.max() < alone.max()
    unclamped = subtracted(clean + 0.1 + 0.1 * field, clean + 0.1 + 0.2 * field, **law, clip=False)
    assert unclamped == pytest.approx(clean, abs=1e-5)


def test_a_seed_is_found_and_gives_the_image_back_but_secret_noise_has_none() -> None:
    data = phantom_data(6)
    clean, true = data.clean(np.arange(6)), [3, 999, 0, 512, 77, 1023]
    fields = np.stack([seeded_field(seed, clean[0].size).reshape(64, 64) for seed in true])
    noisy = np.clip(clean + 0.1 + np.float32(0.3) * fields, 0.0, 1.0)
    noisy = np.rint(noisy * 255).astype(np.float32) / np.float32(255)
    assert find_seeds(noisy, seeds=1024, draw=seeded_field) == true
    assert find_seeds(noisy[1:2], seeds=900, draw=seeded_field) == [None]  # its seed is not among them
    assert find_seeds(_nested(data, 0.3), seeds=1024, draw=seeded_field) == [None] * 6
    image, exact = without_field(noisy[0], fields[0], mean=0.1, std=0.3, clip=True)
    assert exact.mean() > 0.5
    assert np.abs(image - clean[0])[exact].max() < 0.51 / 255


@pytest.mark.slow
def test_a_run_shows_what_naive_noise_loses_and_secret_noise_keeps() -> None:
    data = phantom_data(31)
    outcomes = _run(data, simulated_variant(data, mean=0.1, std=0.2, seed=5))
    found = {(one.metric, one.noise == "secret"): one for one in outcomes if isinstance(one, AttackResult)}
    assert found["psnr_of_releases", False].value > found["psnr_of_releases", True].value + 6
    assert found["psnr_of_two_levels", False].value > found["psnr_of_two_levels", True].value + 6
    # The other level is a noisier one, which leaves beside this one: it must not help beyond this one alone.
    assert any(note.startswith("levels 0.2 and 0.3;") for note in found["psnr_of_two_levels", True].notes)
    for nested, helps in ((False, True), (True, False)):
        (_, alone), (_, both) = found["psnr_of_two_levels", nested].curve or ()
        assert (both > alone) == helps
        assert both == pytest.approx(found["psnr_of_two_levels", nested].value)
    assert found["seeds_found", False].value == 1.0
    assert found["seeds_found", True].value == 0.0
    assert all((one.n_patients, one.seeds) == (31, SEEDS) for one in found.values())
    assert found["psnr_of_releases", False].count == 8
    assert {one.noise for one in outcomes if isinstance(one, AttackResult)} == {"", "fresh", "seeded", "secret"}


def test_fidelity_is_that_of_the_images() -> None:
    data = phantom_data(4)
    perfect = clean_variant(data)
    half = Variant(
        name="half", kind="denoised", draw=lambda rows, _: data.clean(rows) + np.float32(0.1), digest="half", draws=1
    )
    lpips = functools.partial(lambda value, output, target: torch.full((len(output),), value), 0.25)
    outcomes = _run(data, perfect, half, perceptual=lpips)
    scores = {one.metric: one.value for one in outcomes if isinstance(one, AttackResult)}
    assert scores["psnr"] == pytest.approx(20.0, abs=0.1)  # but where the clamp cuts it
    assert scores["lpips"] == 0.25
    assert 0.5 < scores["ssim"] <= 1.0


def test_levels_that_secret_noise_has_not_are_named() -> None:
    data = phantom_data(2)
    outcomes = _run(data, simulated_variant(data, mean=0.0, std=0.5, seed=5))
    reasons = [one.reason for one in outcomes if isinstance(one, Skipped)]
    assert any("secret noise was not tried: std 0.5" in reason for reason in reasons)
