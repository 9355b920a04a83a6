"""Membership inference on runs: a model that keeps its training images, and a small network that cannot."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.small import small_config, train_here, write_images
from torch import Tensor

from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.cohort.obfuscate import write_release
from veilray.errors import RunError
from veilray.obfuscation.config import NoiseConfig
from veilray.privacy import released_model
from veilray.privacy.attacks import membership_attack
from veilray.privacy.catalogue import LIRA, LOSS
from veilray.privacy.extent import FULL
from veilray.privacy.material import open_originals
from veilray.privacy.membership import loss_threshold, patient_losses
from veilray.privacy.released_model import Question, attack_run, image_losses, question_of
from veilray.privacy.results import AttackResult
from veilray.privacy.variants import clean_variant
from veilray.training.run import RunFolder

PATIENTS = 36
SETS = ["train"] * 16 + ["validation"] * 4 + ["test"] * 16


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run and its cohort."""
    root = tmp_path_factory.mktemp("membership")
    write_images(root / "images", patients=PATIENTS)
    lines = [f"{patient:08d}_{k:03d},{SETS[patient]}" for patient in range(PATIENTS) for k in range(2)]
    (root / "split.csv").write_text("\n".join(["image_id,split", *lines]) + "\n")
    import_radiographs([root / "images"], root / "cohort", size=32, split_file=root / "split.csv")
    config = small_config(train={"epochs": 1}, split={"rule": "cohort"})
    train_here(config, root / "cohort", root / "run")
    return root / "run", root / "cohort"


class _Memory:
    """Returns the training image that is nearest."""

    def __init__(self, question: Question) -> None:
        rows = question.rows[question.member[question.patients]]
        self.images = torch.from_numpy(question.clean(rows))[:, None]

    def denoise(self, noisy: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
        guess = (noisy - mean.view(-1, 1, 1, 1)).flatten(1)
        return self.images[torch.cdist(guess, self.images.flatten(1)).argmin(dim=1)]


@pytest.mark.slow
def test_members_are_the_patients_of_the_training_set(trained: tuple[Path, Path]) -> None:
    question = question_of(RunFolder(trained[0]), trained[1])
    asked = [question.images.data.patient_id(int(row)) for row in question.rows]
    truth = {f"{patient:08d}": name for patient, name in enumerate(SETS)}
    assert {truth[patient] for patient in asked} == {"train", "test"}
    assert [bool(question.member[code]) for code in question.patients] == [truth[one] == "train" for one in asked]


def test_of_a_run_on_a_release_the_same_originals_are_asked_about(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run, cohort = trained
    write_release(Cohort.open(cohort), tmp_path / "release", noise=RunFolder(run).config().noise)

    def originals(question: Question, *, member: bool) -> set[bytes]:
        rows = question.rows[question.member[question.patients] == member]
        return {image.tobytes() for image in question.clean(rows)}

    asked, other = (
        question_of(RunFolder(run), cohort, release=tmp_path / "release"),
        question_of(RunFolder(run), cohort),
    )
    for member in (True, False):
        assert originals(asked, member=member) == originals(other, member=member)
    names = set(asked.images.data.image_ids)
    assert not names & set(other.images.data.image_ids)  # it is the release that shadows would train on


def test_a_run_on_noisy_images_alone_is_attacked_with_its_release(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, release, run = trained[1], tmp_path / "release", tmp_path / "noisy-only"
    write_release(Cohort.open(cohort), release, noise=NoiseConfig(mean=0.1, std=0.2))
    train_here(small_config(train={"epochs": 1}), release, run)
    assert RunFolder(run).config().train.objective != "supervised"
    with pytest.raises(RunError, match="nor on a release"):
        membership_attack(run, cohort, folder=tmp_path)
    attack = membership_attack(run, cohort, folder=tmp_path, releases=[release])
    whole = functools.partial(released_model.attack_run, run, cohort)
    monkeypatch.setattr(released_model, "attack_run", lambda *_, shadows, **options: whole(shadows=0, **options))
    data = open_originals(Cohort.open(cohort)).data
    found = attack.run(data, clean_variant(data), extent=FULL, seeds=[3, 4], progress=lambda _: None)
    areas = [one for one in found if isinstance(one, AttackResult) and one.metric == "auc"]
    assert [(one.attacker, one.n_patients, one.n_images) for one in areas] == [(LOSS, 16, 64)]
    assert areas[0].seeds == (3, 4)


def test_a_model_that_keeps_its_training_images_is_found_out(trained: tuple[Path, Path]) -> None:
    question = question_of(RunFolder(trained[0]), trained[1])
    losses = patient_losses(image_losses(_Memory(question), question, seed=1), question.patients)
    found = loss_threshold(losses[None], question.member, model="memory")[0]
    assert isinstance(found, AttackResult)
    assert found.value == 1.0


def test_no_more_patients_are_asked_about_than_wanted(trained: tuple[Path, Path]) -> None:
    question = question_of(RunFolder(trained[0]), trained[1], most=10)
    assert (int(question.member.sum()), int((~question.member).sum())) == (10, 10)
    assert len(question.rows) == 40


@pytest.mark.slow
def test_a_stopped_attack_goes_on_where_it_was(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cohort = trained
    losses = iter(np.random.default_rng(1).uniform(0.1, 0.2, (18, 64)))
    calls: list[int] = []

    def told(*_: object, **__: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return next(losses)

    monkeypatch.setattr(released_model, "image_losses", told)
    monkeypatch.setattr(released_model, "train", lambda *_, **__: None)
    monkeypatch.setattr(released_model.Denoiser, "load", lambda *_: None)
    options = {"seeds": [3], "progress": lambda _: None, "shadows": 16, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        attack_run(run, cohort, **options)  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("shadow-*.json"))) == 6  # the first call was about the released model
    calls[:] = [1] * 8
    outcomes = attack_run(run, cohort, **options)  # type: ignore[arg-type]
    assert len(calls) - 8 == 1 + 10
    assert {one.attacker for one in outcomes if isinstance(one, AttackResult)} == {LOSS, LIRA}


@pytest.mark.slow
def test_a_network_of_one_epoch_keeps_nothing(trained: tuple[Path, Path]) -> None:
    run, cohort = trained
    outcomes = attack_run(run, cohort, seeds=[3], progress=lambda _: None, shadows=16)
    areas = {one.attacker: one for one in outcomes if isinstance(one, AttackResult) and one.metric == "auc"}
    assert set(areas) == {LOSS, LIRA}
    for one in areas.values():
        assert one.low is not None
        assert one.high is not None
        assert one.low <= 0.55
        assert one.high >= 0.45
        assert abs(one.value - 0.5) < 0.3
        assert (one.n_patients, one.n_images) == (16, 64)
