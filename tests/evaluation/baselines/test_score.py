"""Tuning sees validation images alone, its choice is the best of what was tried, and a stopped evaluation goes on."""

from __future__ import annotations

import json
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from veilray.cohort.cohort import Cohort
from veilray.errors import DataError
from veilray.evaluation.baselines import methods, score, tuning
from veilray.evaluation.baselines.cache import ScoreCache
from veilray.evaluation.baselines.cases import decibels, load_case, spread, tuning_rows
from veilray.evaluation.baselines.methods import METHODS, KnownNoise, Strength, grid, restore, smooth
from veilray.evaluation.baselines.score import Classical, score_classical
from veilray.evaluation.baselines.tuning import tune
from veilray.images.radiograph import FloatImage
from veilray.obfuscation.config import NoiseConfig
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages

BOTH = (METHODS["tv"], METHODS["tv-naive"])


@pytest.fixture(scope="module")
def images(scored_cohort: Path) -> TrainingImages:
    return TrainingImages(Cohort.open(scored_cohort), RunConfig())


class _Watched(TrainingImages):
    """Remembers the images whose pixels were asked for."""

    def __init__(self, of: TrainingImages) -> None:
        super().__init__(of.data, of.config)
        self.seen: set[int] = set()

    def held_out_batch(self, rows: Any, device: torch.device) -> Any:
        self.seen |= set(rows.tolist())
        return super().held_out_batch(rows, device)


def test_tuning_reads_validation_images_alone(images: TrainingImages) -> None:
    watched = _Watched(images)
    tuned = tune(BOTH, watched, cache=ScoreCache(None))
    assert watched.seen
    assert watched.seen <= set(images.sets["validation"].tolist())
    names = {images.image_id(row) for row in watched.seen}
    assert all(set(one.image_ids) == names for one in tuned.values())


def test_no_more_images_than_asked_and_the_same_for_every_noise(images: TrainingImages) -> None:
    chosen = tuning_rows(images, 3)
    assert len(chosen) == 3
    assert set(chosen) <= set(tuning_rows(images, 5)) <= set(images.sets["validation"])
    noise = NoiseConfig(std=0.05)
    other = TrainingImages(images.data, images.config.model_copy(update={"noise": noise}))
    np.testing.assert_array_equal(tuning_rows(other, 3), chosen)
    # Not the first of the list, which would favour the first patients.
    assert chosen.tolist() != images.sets["validation"][:3].tolist()


def test_the_choice_is_the_best_of_the_whole_grid_though_not_all_of_it_was_tried(images: TrainingImages) -> None:
    tuned = tune(BOTH, images, cache=ScoreCache(None), count=3)
    cases = [load_case(images, row) for row in tuning_rows(images, 3)]
    for method in BOTH:
        by_hand = [
            float(
                np.mean([decibels(restore(c.noisy, method, noise=c.noise, strength=strength), c.clean) for c in cases])
            )
            for strength in grid("tv")
        ]
        one = tuned[method.name]
        assert one.strength == grid("tv")[int(np.argmax(by_hand))]
        assert 2 <= len(one.tried) < len(grid("tv"))
        for strength, psnr in one.tried:
            assert psnr == pytest.approx(by_hand[grid("tv").index(strength)])


@pytest.mark.parametrize("peak", [0.2, 1.0, 5.0])
def test_the_search_ends_where_both_neighbours_are_worse(
    peak: float, images: TrainingImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = (0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 5.0)
    made = tuple({"eps": eps, "factor": factor} for eps in (1.0, 0.5) for factor in factors)
    monkeypatch.setattr(tuning, "grid", lambda smoother: made)
    monkeypatch.setattr(tuning, "_try", lambda item: [-abs(item[1]["factor"] - peak) - item[1]["eps"]] * 2)
    monkeypatch.setattr(methods, "grid", lambda smoother: made)
    found = tune(BOTH[:1], images, cache=ScoreCache(None), count=1)["tv"]
    assert found.strength == {"eps": 0.5, "factor": peak}
    assert found.at_edge == (peak == 5.0)
    place, tried = factors.index(peak), [strength["factor"] for strength, _ in found.tried if strength["eps"] == 0.5]
    assert set(factors[max(0, place - 1) : place + 2]) <= set(tried)


def test_a_family_that_is_worse_in_the_middle_is_climbed_too(
    images: TrainingImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = (0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 5.0)
    made = tuple({"eps": eps, "factor": factor} for eps in (1.0, 0.5) for factor in factors)
    heights = {(eps, factor): -float(number) for eps in (1.0, 0.5) for number, factor in enumerate(factors)}
    heights |= {(1.0, 0.7): 5.0, (0.5, 1.0): 2.0, (0.5, 2.0): 6.0}  # middles: 5 and -3; the best is the second's
    monkeypatch.setattr(tuning, "grid", lambda smoother: made)
    monkeypatch.setattr(methods, "grid", lambda smoother: made)
    monkeypatch.setattr(tuning, "_try", lambda item: [heights[item[1]["eps"], item[1]["factor"]]] * 2)
    found = tune(BOTH[:1], images, cache=ScoreCache(None), count=1)["tv"]
    assert found.strength == {"eps": 0.5, "factor": 2.0}


def test_scores_are_those_of_the_tuned_method_on_the_images_noise(images: TrainingImages) -> None:
    rows = images.sets["test"]
    found = score_classical(Classical(methods=BOTH, workers=1, tuning_images=2), images, rows, lpips=None)
    assert [(s.method, s.image_id) for s in found.scores] == [
        (method.name, images.image_id(row)) for method in BOTH for row in rows
    ]
    for one in found.scores:
        row = next(row for row in rows if images.image_id(row) == one.image_id)
        case = load_case(images, row)
        assert case.noise == KnownNoise(mean=pytest.approx(0.1), std=pytest.approx(0.2), clip=True)
        strength = found.tuned[one.method].strength
        estimate = restore(case.noisy, METHODS[one.method], noise=case.noise, strength=strength)
        assert one.psnr == pytest.approx(decibels(estimate, case.clean), abs=1e-3)
        assert one.patient_id == images.data.patient_id(row)


def test_seconds_are_those_of_one_core(images: TrainingImages, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy_and_idle(*arguments: Any, **options: Any) -> FloatImage:
        time.sleep(0.05)
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
        return np.zeros((32, 32), dtype=np.float32)

    monkeypatch.setattr(score, "smooth", busy_and_idle)
    plan = Classical(methods=BOTH[:1], workers=1, tuning_images=1)
    found = score_classical(plan, images, images.sets["test"][:2], lpips=None)
    # Sleeping takes time by the clock but none of a core, whatever else the machine does.
    assert found.core_seconds["tv"] >= 0.02
    assert found.seconds["tv"] >= 0.05
    assert found.core_seconds["tv"] < found.seconds["tv"]


def test_what_is_done_is_not_done_again(
    images: TrainingImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Classical(methods=BOTH, workers=1, tuning_images=2, cache=tmp_path / "deep" / "scores.jsonl")
    rows = images.sets["test"][:4]
    calls = _counted(monkeypatch, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        score_classical(plan, images, rows, lpips=None)
    assert len(calls) == 3
    with (tmp_path / "deep" / "scores.jsonl").open("a") as stream:
        stream.write('["half a line')
    calls = _counted(monkeypatch)
    whole = score_classical(plan, images, rows, lpips=None)
    shared = whole.tuned["tv"].strength == whole.tuned["tv-naive"].strength
    assert len(calls) == (1 if shared else 2) * len(rows) - 2
    calls = _counted(monkeypatch)
    again = score_classical(plan, images, rows, lpips=None)
    assert not calls
    assert again == whole
    text = (tmp_path / "deep" / "scores.jsonl").read_text()
    assert not any(one.image_id in text or one.patient_id in text for one in whole.scores)
    fresh = score_classical(replace(plan, cache=None), images, rows, lpips=None)
    assert fresh.scores == whole.scores


def _counted(monkeypatch: pytest.MonkeyPatch, *, stop_after: int = 10**6) -> list[int]:
    calls: list[int] = []

    def counted(*arguments: Any, **options: Any) -> FloatImage:
        calls.append(1)
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        return smooth(*arguments, **options)

    monkeypatch.setattr(score, "smooth", counted)
    return calls


def test_other_noise_and_other_strengths_are_computed_anew(
    images: TrainingImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Classical(methods=BOTH[:1], workers=1, tuning_images=1, cache=tmp_path / "scores.jsonl")
    first = score_classical(plan, images, images.sets["test"][:2], lpips=None)
    stronger = images.config.model_copy(update={"noise": NoiseConfig(std=0.6)})
    other = score_classical(plan, TrainingImages(images.data, stronger), images.sets["test"][:2], lpips=None)
    assert all(a.psnr > b.psnr for a, b in zip(first.scores, other.scores, strict=True))
    found: tuple[Strength, ...] = ({"eps": 2e-4, "factor": 5.0},)
    monkeypatch.setattr(tuning, "grid", lambda smoother: found)
    worse = score_classical(plan, images, images.sets["test"][:2], lpips=None)
    assert worse.tuned["tv"].strength == found[0]
    assert all(a.psnr > b.psnr for a, b in zip(first.scores, worse.scores, strict=True))


def test_a_cache_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file of scores"):
        ScoreCache(tmp_path)
    path = tmp_path / "cache"
    path.write_bytes(b'\xff\xfe not json\n["digest"]\n17\n')
    cache = ScoreCache(path)
    assert cache.get({"a": 1}) is None
    cache.put({"a": 1}, {"b": [2.5]})
    assert ScoreCache(path).get({"a": 1}) == {"b": [2.5]}


def test_notes_and_record_say_how_strengths_were_chosen(images: TrainingImages) -> None:
    found = score_classical(
        Classical(methods=BOTH, workers=1, tuning_images=2), images, images.sets["test"][:2], lpips=None
    )
    record = json.loads(json.dumps(found.record(images)))
    assert record["tuned_on"] == "validation"
    assert len(record["tuning_images"]) == 2
    assert set(record["methods"]) == {"tv", "tv-naive"}
    entry = record["methods"]["tv"]
    best = max(entry["grid"], key=lambda one: one["psnr"])
    assert entry["strength"] == best["strength"]
    assert "2 validation images" in found.notes()[0]


def test_work_goes_to_processes_of_one_thread(images: TrainingImages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert list(spread(os.getenv, ["OMP_NUM_THREADS", "MKL_NUM_THREADS"], workers=2)) == ["1", "1"]
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ
    # What a process is given and what it gives back can travel.
    case = load_case(images, int(images.sets["test"][0]))
    function, item = pickle.loads(pickle.dumps((score._restore, (BOTH, grid("tv")[0], case))))
    _, estimates = pickle.loads(pickle.dumps(function(item)))
    for method, (estimate, _, _) in zip(BOTH, estimates, strict=True):
        here = restore(case.noisy, method, noise=case.noise, strength=grid("tv")[0])
        np.testing.assert_array_equal(estimate, here)


def test_scores_by_another_backbone_are_not_taken_for_these(images: TrainingImages) -> None:
    work = score._Work(BOTH[0], {"eps": 2e-4, "factor": 1.0}, 0)
    backbones = (None, SimpleNamespace(digest="one"), SimpleNamespace(digest="two"))
    keys = [json.dumps(work.key(images, lpips=one), sort_keys=True) for one in backbones]  # type: ignore[arg-type]
    assert len(set(keys)) == 3
