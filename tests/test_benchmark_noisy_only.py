"""The benchmark of training without clean images: equal work, a whole plan, choices judged by what they lose."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.small import write_images

from veilray.cohort.build import import_radiographs
from veilray.cohort.release import Release
from veilray.cohort.split import Shares
from veilray.training.data import TrainingImages

ROOT = Path(__file__).parent.parent


@pytest.fixture
def arms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("noisy_only_arms")


@pytest.fixture
def summing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("noisy_only_table")


def test_main_arms_do_the_same_work_and_have_checkpoints_to_choose_from(arms: ModuleType) -> None:
    for arm in arms.MAIN:
        assert arm.epochs * arm.work == pytest.approx(arms.EPOCHS, rel=0.03)
        assert arm.epochs >= 16
    others = {arm.objective: arm.work for arm in arms.OTHERS}
    assert others["censored_r2r"] > 1.2 > others["neighbor2neighbor"]  # as measured


def test_the_plan_holds_every_cell_once_and_begins_with_the_pairs_that_share_a_start(arms: ModuleType) -> None:
    cells = arms.plan()
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    main = [cell for cell in cells if cell.arm.kind == "main"]
    assert len(main) == len(arms.LEVELS) * len(arms.SEEDS) * 4
    first = cells[: len(main) * 3 // 2]
    assert len({(cell.std, cell.seed, cell.arm.name, cell.arm.clip) for cell in first}) == len(first)
    assert all(cell.arm.started for cell in first)
    assert sum(not cell.arm.trained for cell in first) == len(main) // 2


@pytest.mark.slow
def test_a_release_holds_whole_sets_and_few_validation_images(
    arms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "png", patients=20)
    shares = Shares(train=50, validation=30, test=20)
    import_radiographs([tmp_path / "png"], tmp_path / "cohort", size=32, workers=1, shares=shares)
    monkeypatch.setattr(arms, "VALIDATION_IMAGES", 2)
    monkeypatch.setattr(arms, "CROP", 16)
    places = arms.Places(data=tmp_path / "cohort", public=tmp_path / "png", out=tmp_path / "out")
    (cell, *_) = [cell for cell in arms.plan() if cell.arm.name == "censored_sure"]
    release = Release.open(places.release(cell))
    assert release.pairs
    config = arms.config_of(cell, places)
    own = TrainingImages(release, config)
    whole = TrainingImages.open(tmp_path / "cohort", arms.recipe(1, {}, {}))
    for name in ("train", "test"):
        kept, all_ = ({images.image_id(int(row)) for row in images.sets[name]} for images in (own, whole))
        assert kept == all_
    chosen = [own.data.patient_id(int(row)) for row in own.sets["validation"]]
    assert len(chosen) == len(set(chosen)) == 2
    assert not (tmp_path / "cohort" / "releases").exists()
    second = Release.open(places.release(cell, second=True))
    pair = arms.Cell(arm=arms.Arm(objective="noise2noise", clip=True, kind="objective"), std=cell.std, seed=cell.seed)
    TrainingImages(release, arms.config_of(pair, places), second=second)  # of the same images, with noise of its own
    assert places.release(cell) == release.path


def _result(arm: str, seed: int, shift: float, *, criterion: float, kind: str = "main") -> dict[str, Any]:
    base = np.linspace(25.0, 30.0, 8)
    images = [{"image": f"{k}", "patient": f"{k // 2}", "psnr": value + shift} for k, value in enumerate(base)]
    return {
        "arm": arm,
        "kind": kind,
        "clamped": True,
        "std": 0.2,
        "seed": seed,
        "epochs": 20,
        "learning_rate": 1e-3,
        "processor_seconds": 1.0,
        "choice": {"gap_db": 0.01},
        "by_epoch": [[criterion, 27.0 + shift]],
        "images": images,
        "common": {"criterion": criterion, "psnr": 27.0 + shift},
    }


def test_differences_are_paired_by_image_and_averaged_over_seeds(summing: ModuleType) -> None:
    results = [_result("supervised", seed, 0.0, criterion=0.1) for seed in (1, 2)]
    results += [_result("censored_sure", seed, shift, criterion=0.2) for seed, shift in ((1, -0.1), (2, -0.3))]
    rows = {row["arm"]: row for row in summing.summary(results)["arms"]}
    found = rows["censored_sure"]["minus_supervised"]
    assert found["by_seed"] == pytest.approx([-0.1, -0.3])
    # The same for every image: the interval has no width, whatever the images differ by.
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((-0.2, -0.2, -0.2))
    assert "minus_supervised" not in rows["supervised"]


def test_arms_that_begin_from_trained_weights_are_held_against_one_that_does(summing: ModuleType) -> None:
    names = {"supervised": 0.0, "supervised, started": 1.0, "censored_sure, started": 0.8}
    results = [_result(name, 1, shift, criterion=0.1) for name, shift in names.items()]
    for one in results[1:]:
        one["reference"] = "supervised, started"
    rows = {row["arm"]: row for row in summing.summary(results)["arms"]}
    assert rows["censored_sure, started"]["minus_supervised"]["mean"] == pytest.approx(-0.2)
    assert "minus_supervised" not in rows["supervised, started"]


def test_a_choice_among_recipes_costs_what_the_better_one_had(summing: ModuleType) -> None:
    results = [
        _result("supervised", 1, 0.5, criterion=0.01),  # Site Two has none such
        _result("censored_sure", 1, 0.0, criterion=0.3),
        _result("blind_spot", 1, -0.4, criterion=0.2, kind="objective"),
        _result("neighbor2neighbor", 1, -0.6, criterion=0.4, kind="objective"),
    ]
    (found,) = summing.ranking(results)
    assert found["chosen"] == "blind_spot"
    assert found["regret_db"] == pytest.approx(0.4)
    assert set(found["recipes"]) == {"censored_sure", "blind_spot", "neighbor2neighbor"}
    assert found["rank_correlation"] == pytest.approx(0.5)


def test_the_probe_s_part_of_a_gradient_s_variance_grows_where_fewer_images_are_probed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    variance = importlib.import_module("noisy_only_variance")
    monkeypatch.setattr(variance, "CROP", 16)
    monkeypatch.setattr(variance, "WIDE", {**variance.WIDE, "width": 4, "depth": 2})
    clean = torch.rand((4, 1, 32, 32), generator=torch.Generator().manual_seed(3))
    found = variance.measure(clean, steps=4, batches=12)["objectives"]
    assert found["supervised"]["ratio"] == 1.0
    assert "probe_share" not in found["censored_r2r"]
    shares = [found[f"censored_sure, probe_every {every}"]["probe_share"] for every in variance.PROBES]
    assert 0.0 < shares[0] < shares[-1] < 1.0


def test_scores_that_were_kept_are_those_measured_and_pieces_add_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    keeping = importlib.import_module("noisy_only_kept")
    monkeypatch.setattr(keeping, "PATH", tmp_path / "cells.json")
    assert keeping.kept() == {}

    def result(name: str, count: int, more: float) -> dict[str, Any]:
        images = [{"image": f"{name}{i}", "patient": "p", "psnr": 30.0 + i + more} for i in range(count)]
        return {"arm": "sure", "choice": None, "made_by": name, "images": images}

    first = {"a-test.json": result("t", 3, 0.0001), "b-test.json": result("t", 3, 0.0002)}
    keeping.keep(first)
    assert keeping.kept() == first
    second = {"b-test.json": result("t", 3, 0.5), "c-validation.json": result("v", 2, 0.0)}
    keeping.keep(second)
    assert keeping.kept() == {**first, **second}


def test_a_result_is_of_its_cell_only_while_nothing_that_it_depends_on_changes(
    arms: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cells = importlib.import_module("noisy_only_cells")
    write_images(tmp_path / "png", patients=4)
    import_radiographs([tmp_path / "png"], tmp_path / "cohort", size=32, workers=1)
    places = arms.Places(data=tmp_path / "cohort", public=tmp_path / "png", out=tmp_path / "out")
    started, drawn = (next(cell for cell in arms.plan() if cell.arm.started is started) for started in (True, False))
    digests = {cells.made_by(cell, places) for cell in arms.plan()}
    assert len(digests) == len(arms.plan()) - sum(not cell.arm.trained for cell in arms.plan())
    before = [cells.made_by(cell, places) for cell in (started, drawn)]
    monkeypatch.setattr(arms, "START_EPOCHS", 5)
    assert cells.made_by(started, places) != before[0]
    assert cells.made_by(drawn, places) == before[1]
    monkeypatch.setattr(arms, "MEAN", 0.2)
    assert cells.made_by(drawn, places) != before[1]
