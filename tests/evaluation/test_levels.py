"""Noise levels to score at: when one is far from the noise of the training."""

from __future__ import annotations

import pytest

from veilray.evaluation.levels import noise_note
from veilray.obfuscation.config import NoiseConfig

RANGE = NoiseConfig(mean=(0.0, 0.2), std=(0.002, 0.4))
LEVEL = NoiseConfig(mean=0.1, std=0.2)


@pytest.mark.parametrize(
    ("trained", "scored", "far"),
    [
        (RANGE, NoiseConfig(mean=0.1, std=0.2), False),
        (RANGE, NoiseConfig(mean=0.0, std=0.4), False),
        (RANGE, NoiseConfig(mean=0.1, std=0.9), True),
        (RANGE, NoiseConfig(mean=0.5, std=0.2), True),
        (RANGE, NoiseConfig(mean=0.1, std=(0.1, 0.9)), True),
        (RANGE, NoiseConfig(mean=(0.1, 0.5), std=0.2), True),
        (LEVEL, LEVEL, False),
        (LEVEL, NoiseConfig(mean=0.1, std=0.22), False),
        (LEVEL, NoiseConfig(mean=0.1, std=0.1), True),
        (LEVEL, NoiseConfig(mean=0.1, std=0.3), True),
        (LEVEL, NoiseConfig(mean=0.1, std=(0.05, 0.2)), True),
    ],
)
def test_noise_far_from_that_of_the_training_is_named_beside_it(
    trained: NoiseConfig, scored: NoiseConfig, far: bool
) -> None:
    note = noise_note("default", trained=trained, scored=scored)
    assert bool(note) == far
    for noise in (trained, scored) if far else ():
        assert f"std {noise.std_text} and mean {noise.mean_text}" in note


def test_a_shift_makes_up_for_any_mean_where_nothing_is_clamped() -> None:
    scored = NoiseConfig(mean=0.5, std=0.2, clip=False)
    assert not noise_note("default", trained=NoiseConfig(mean=0.1, std=0.2, clip=False), scored=scored)
    assert noise_note("default", trained=LEVEL, scored=scored)
