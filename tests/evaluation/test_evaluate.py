"""Evaluation against a computation of its own: keyed noise, PSNR by numpy, SSIM by scikit-image."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from skimage.metrics import structural_similarity

from veilray.cohort.cohort import Cohort
from veilray.errors import CohortError, RunError, VeilrayError
from veilray.evaluation import results
from veilray.evaluation.compare import compare
from veilray.evaluation.evaluate import evaluate_run
from veilray.evaluation.results import PER_IMAGE, SUMMARY, Summary, read_scores, read_summary
from veilray.evaluation.scoring import Perceptual
from veilray.evaluation.subject import open_images, open_subject
from veilray.metrics.lpips import load_lpips
from veilray.models.weights import load_model
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.run import RunFolder

CPU = torch.device("cpu")
NO_LPIPS = Perceptual(network=None, note="LPIPS was not computed: a test.")

Image = npt.NDArray[np.float32]


def _evaluate(run: Path, cohort: Path, *, split: str = "test", perceptual: Perceptual = NO_LPIPS) -> Summary:
    images = TrainingImages.open(cohort, RunFolder(run).config())
    return evaluate_run(RunFolder(run), images, split=split, perceptual=perceptual, device=CPU)


def _test_noise(image_id: str, config: RunConfig, shape: tuple[int, ...]) -> Image:
    """The test noise from its definition: Philox keyed by BLAKE2b of seed, epoch 0 and name."""
    name = f"{config.evaluate.noise_seed}/0/held-out/{image_id}".encode()

    def digest(purpose: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(name, digest_size=16, person=purpose).digest(), "little")

    low, high = config.noise.std_range
    std = np.float32(low + (high - low) * (digest(b"std") / 2**128))
    field = np.random.Generator(np.random.Philox(key=digest(b"field"))).standard_normal(shape, dtype=np.float32)
    return field * std + np.float32(config.noise.mean)


def _decibels(output: Image, clean: Image) -> float:
    return float(-10 * np.log10(np.mean((output.astype(np.float64) - clean.astype(np.float64)) ** 2)))


def _by_hand(run: Path, cohort_path: Path) -> dict[tuple[str, str], dict[str, float]]:
    config, cohort = RunFolder(run).config(), Cohort.open(cohort_path)
    model = load_model(RunFolder(run).best_weights)
    expected = {}
    for row in cohort.rows("test"):
        name = cohort.image_id(int(row))
        clean = cohort.gather(np.array([row]))[0]
        noisy = np.clip(clean + _test_noise(name, config, clean.shape), 0.0, 1.0).astype(np.float32)
        with torch.no_grad():
            output = model(torch.from_numpy(noisy)[None, None])[0, 0].numpy()
        for method, raw in (("noisy", noisy), ("model", output)):
            kept = np.clip(raw, 0.0, 1.0)
            gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
            expected[name, method] = {
                "psnr": _decibels(kept, clean),
                "psnr_unclamped": _decibels(raw, clean),
                "ssim": structural_similarity(kept, clean, data_range=1.0, **gaussian),
                "ssim_3x3": structural_similarity(kept, clean, data_range=1.0, win_size=3),
            }
    return expected


def test_every_score_is_that_of_an_independent_computation(paper_run: Path, scored_cohort: Path) -> None:
    expected = _by_hand(paper_run, scored_cohort)
    with (paper_run / PER_IMAGE).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted((row["image_id"], row["method"]) for row in rows) == sorted(expected)
    for row in rows:
        scores = expected[row["image_id"], row["method"]]
        assert float(row["psnr"]) == pytest.approx(scores["psnr"], abs=2e-4)
        assert float(row["psnr_unclamped"]) == pytest.approx(scores["psnr_unclamped"], abs=2e-4)
        assert float(row["ssim"]) == pytest.approx(scores["ssim"], abs=2e-5)
        assert float(row["ssim_3x3"]) == pytest.approx(scores["ssim_3x3"], abs=2e-5)
        assert row["lpips"] == ""
        assert row["patient_id"] == row["image_id"].partition("_")[0]
    # The raw output leaves [0, 1] somewhere, or the two figures could not be told apart.
    assert any(row["psnr"] != row["psnr_unclamped"] for row in rows if row["method"] == "model")


def test_the_test_noise_is_that_of_no_training_image(paper_run: Path, scored_cohort: Path) -> None:
    config = RunFolder(paper_run).config()
    same_seed = config.model_copy(
        update={"seed": config.evaluate.noise_seed, "noise": config.noise.model_copy(update={"fresh": False})}
    )
    images = TrainingImages.open(scored_cohort, same_seed)
    batch = images.training_batch(0, 0, CPU)
    held_out = images.held_out_batch(batch.rows, CPU)
    assert torch.equal(batch.clean, held_out.clean)
    assert not torch.equal(batch.noisy, held_out.noisy)


def test_means_and_intervals_are_those_of_the_csv(paper_run: Path) -> None:
    summary, scores = read_summary(paper_run), read_scores(paper_run)
    for method, metrics in summary.methods.items():
        mine = [score for score in scores if score.method == method]
        patients = sorted({score.patient_id for score in mine})
        for metric in ("psnr", "ssim", "ssim_3x3", "psnr_unclamped"):
            by_patient = [[getattr(s, metric) for s in mine if s.patient_id == patient] for patient in patients]
            sums, counts = np.array([sum(v) for v in by_patient]), np.array([len(v) for v in by_patient])
            generator = np.random.default_rng(summary.bootstrap_seed)
            drawn = generator.integers(len(patients), size=(summary.resamples, len(patients)))
            means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
            low, high = np.quantile(means, [0.025, 0.975])
            interval = metrics[metric]
            assert interval is not None
            assert (interval.mean, interval.low, interval.high) == pytest.approx((sums.sum() / counts.sum(), low, high))
        assert metrics["lpips"] is None
    assert summary.n_images == len(scores) / 2
    assert summary.n_patients == len({score.patient_id for score in scores})
    assert summary.confidence == 0.95


def test_evaluating_twice_gives_the_same_files_but_for_timing(own_paper_run: Path, scored_cohort: Path) -> None:
    _evaluate(own_paper_run, scored_cohort)
    first = ((own_paper_run / PER_IMAGE).read_bytes(), json.loads((own_paper_run / SUMMARY).read_text()))
    _evaluate(own_paper_run, scored_cohort)
    second = ((own_paper_run / PER_IMAGE).read_bytes(), json.loads((own_paper_run / SUMMARY).read_text()))
    assert first[0] == second[0]
    for timing in ("seconds_per_image", "core_seconds_per_image"):
        assert first[1].pop(timing).keys() == second[1].pop(timing).keys() == {"model"}
    assert first[1] == second[1]


def test_the_size_of_the_batches_changes_no_score(
    own_paper_run: Path, scored_cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_scores(own_paper_run)
    monkeypatch.setattr("veilray.evaluation.evaluate.BATCH_SIZE", 3)
    _evaluate(own_paper_run, scored_cohort)
    after = {(score.image_id, score.method): score for score in read_scores(own_paper_run)}
    for score in before:
        other = after[score.image_id, score.method]
        assert (other.psnr, other.ssim) == pytest.approx((score.psnr, score.ssim), rel=1e-5)


def test_other_sets_and_other_data(own_paper_run: Path, scored_cohort: Path, tmp_path: Path) -> None:
    summary = _evaluate(own_paper_run, scored_cohort, split="validation")
    assert summary.n_images == len(Cohort.open(scored_cohort).rows("validation"))
    from tests.command_line import make_cohort

    other = make_cohort(tmp_path, patients=16)
    before = (own_paper_run / PER_IMAGE).read_bytes()
    with pytest.raises(CohortError, match="digest"):
        _evaluate(own_paper_run, other)
    assert (own_paper_run / PER_IMAGE).read_bytes() == before


def test_an_empty_set_is_named(own_paper_run: Path, scored_cohort: Path) -> None:
    images = TrainingImages.open(scored_cohort, RunFolder(own_paper_run).config())
    images.sets["test"] = images.sets["test"][:0]
    with pytest.raises(CohortError, match="no images in its test set"):
        evaluate_run(RunFolder(own_paper_run), images, perceptual=NO_LPIPS, device=CPU)


def test_a_full_disk_leaves_the_old_results(
    own_paper_run: Path, scored_cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (own_paper_run / name).read_bytes() for name in (PER_IMAGE, SUMMARY)}

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for writer in ("write_json", "csv.writer"):
        with monkeypatch.context() as patch:
            patch.setattr(f"{results.__name__}.{writer}", full)
            with pytest.raises(VeilrayError, match="no space left"):
                _evaluate(own_paper_run, scored_cohort, split="validation")
        assert {name: (own_paper_run / name).read_bytes() for name in (PER_IMAGE, SUMMARY)} == before
        assert len(list((own_paper_run / "evaluation").iterdir())) == 2


def test_without_lpips_the_reason_is_on_record(paper_run: Path) -> None:
    (note,) = read_summary(paper_run).notes
    assert note.startswith("LPIPS was not computed: ")
    assert "--lpips-backbone" in note
    assert {score.lpips for score in read_scores(paper_run)} == {None}


@pytest.mark.slow
def test_lpips_with_a_backbone_scores_each_image(tmp_path: Path, lpips_backbone: Path) -> None:
    from tests.command_line import SMALL, done, make_cohort

    cohort = make_cohort(tmp_path, size=64)
    run = tmp_path / "run"
    done("train", "default", "--data", cohort, "--out", run, *SMALL, "--set", "train.epochs=1")
    result = done("evaluate", run, "--data", cohort, "--lpips-backbone", lpips_backbone)
    assert "lpips" in result.out
    assert "not computed" not in result.out
    summary, scores = read_summary(run), read_scores(run)
    assert summary.notes == []
    metric, images = load_lpips(lpips_backbone), TrainingImages.open(cohort, RunFolder(run).config())
    noisy = {score.image_id: score.lpips for score in scores if score.method == "noisy"}
    assert len(set(noisy.values())) == len(noisy) > 1
    for row in images.sets["test"]:
        batch = images.held_out_batch(np.array([row]), CPU)
        alone = metric(batch.noisy, batch.clean).item()
        assert noisy[images.image_id(int(row))] == pytest.approx(alone, abs=1e-5)
    mean = summary.methods["noisy"]["lpips"]
    assert mean is not None
    assert mean.mean == pytest.approx(np.mean([value for value in noisy.values() if value is not None]))


def test_a_run_that_was_trained_on_since_is_not_compared_by_old_scores(own_paper_run: Path) -> None:
    assert compare([own_paper_run])
    weights = own_paper_run / "checkpoints" / "best.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(RunError, match="trained on since it was evaluated"):
        compare([own_paper_run])


@pytest.mark.parametrize("train", [{"objective": "noise2noise", "second_digest": "1" * 64}, {"clean_digest": "2" * 64}])
def test_what_stood_beside_the_training_does_not_matter_for_its_scores(
    paper_run: Path, scored_cohort: Path, train: dict[str, str]
) -> None:
    run = open_subject(paper_run)
    beside = run.config.model_copy(update={"train": run.config.train.model_copy(update=train)})
    images = open_images(replace(run, config=beside), scored_cohort)
    assert images.choice.objective == "supervised"
