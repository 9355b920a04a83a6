"""Networks trained for one protection each: they undo what can be undone, by what they learned of other patients."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.privacy.phantoms import phantom_data

from veilray.errors import DataError
from veilray.privacy import restorers
from veilray.privacy.data import Variant
from veilray.privacy.restorers import dealt, restored_variant
from veilray.privacy.scoring import psnr_of
from veilray.privacy.variants import baseline_variants, simulated_variant

DATA = phantom_data(24)


def _silent(_: str) -> None:
    pass


def _noise() -> Variant:
    return simulated_variant(DATA, mean=0.1, std=0.3, seed=1)


@pytest.mark.slow
def test_a_network_gives_back_what_noise_took_from_patients_that_it_never_saw(tmp_path: Path) -> None:
    noisy = _noise()
    restored = restored_variant(noisy, data=DATA, folder=tmp_path, steps=80)
    assert (restored.kind, restored.source, restored.name) == ("denoised", "noise 0.3", "noise 0.3, restored")
    rows = np.array(restored.judged)
    before, after = (psnr_of(one.draw(rows, 0), DATA.clean(rows)).mean() for one in (noisy, restored))
    assert after > before + 3.0


@pytest.mark.slow
def test_what_is_gone_is_not_given_back(tmp_path: Path) -> None:
    grey = Variant(
        name="grey",
        kind="baseline",
        draw=lambda rows, _: np.full((len(rows), *DATA.size), 0.5, dtype=np.float32),
        digest="grey",
    )
    restored = restored_variant(grey, data=DATA, folder=tmp_path, steps=80)
    rows = np.array(restored.judged)
    images = restored.draw(rows, 0)
    assert restored.kind == "baseline"
    assert np.ptp(images, axis=0).max() == 0.0  # the same for everybody
    average = np.broadcast_to(DATA.clean(np.arange(len(DATA))).mean(axis=0), images.shape)
    assert psnr_of(images, DATA.clean(rows)).mean() < psnr_of(average, DATA.clean(rows)).mean()


@pytest.mark.slow
def test_nobody_is_both_trained_on_and_judged_by() -> None:
    data = phantom_data(20, follow_ups=2)
    train, test = dealt(data)
    owners = [{data.patient_ids[row] for row in rows} for rows in (train, test)]
    assert not owners[0] & owners[1]
    assert len(train) + len(test) == len(data)


def test_a_split_of_the_cohort_is_kept_to() -> None:
    sets = ("train", "validation", "test") * 8
    train, test = dealt(dataclasses.replace(DATA, sets=sets))
    assert {sets[row] for row in train} == {"train"}
    assert {sets[row] for row in test} == {"test"}
    assert (len(train), len(test)) == (8, 8)


def test_a_finished_network_is_not_trained_again_and_a_damaged_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    train = restorers.train_restorer

    def counting(*args: object, **options: object) -> object:
        trained.append("once more")
        return train(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(restorers, "train_restorer", counting)
    for _ in range(2):  # the second finds what the first kept, as after a kill
        restored = restored_variant(_noise(), data=DATA, folder=tmp_path, steps=2)
        assert restored.prepare is not None
        restored.prepare(_silent)
        restored.prepare(_silent)
        assert len(trained) == 1
    (weights,) = tmp_path.glob("*.safetensors")
    assert weights.stat().st_mode & 0o077 == 0
    weights.write_bytes(weights.read_bytes()[:-100])
    restored = restored_variant(_noise(), data=DATA, folder=tmp_path, steps=2)
    restored.draw(np.arange(2), 0)
    assert len(trained) == 2


def test_a_training_tells_how_far_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    restored = restored_variant(_noise(), data=DATA, folder=tmp_path, steps=12)
    assert restored.prepare is not None
    restored.prepare(said.append)
    assert said == ["training a network for it, step 1 of 12", "training a network for it, step 11 of 12"]


def test_too_few_patients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        restored_variant(_noise(), data=phantom_data(3), folder=tmp_path)


def test_obfuscations_for_scale_do_not_count_as_what_leaves() -> None:
    assert {one.kind for one in baseline_variants(DATA, seed=1)} == {"baseline"}
    assert sum(one.is_noise for one in baseline_variants(DATA, seed=1)) == 2
