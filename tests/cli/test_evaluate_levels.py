"""veilray evaluate with classical methods and at noise levels of its own: files, reports, and wrong words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.command_line import done, make_cohort, veilray

from veilray.evaluation.levels import at_noise
from veilray.evaluation.results import BASELINES, PER_IMAGE, SUMMARY, read_scores, read_summary
from veilray.inference.denoiser import Denoiser
from veilray.metrics.statistics import paired_comparison
from veilray.training.data import TrainingImages
from veilray.training.run import RunFolder


@pytest.mark.slow
def test_classical_methods_stand_in_one_table_with_the_model(own_run: Path, flow_cohort: Path) -> None:
    words = ["evaluate", own_run, "--data", flow_cohort, "--no-download"]
    result = done(*words, "--methods", "tv,tv-naive", "--workers", 1)
    summary, scores = read_summary(own_run), read_scores(own_run)
    assert list(summary.methods) == ["noisy", "model", "tv", "tv-naive"]
    assert set(summary.core_seconds_per_image) == set(summary.seconds_per_image) == {"model", "tv", "tv-naive"}
    by_method = {m: {s.image_id: s for s in scores if s.method == m} for m in summary.methods}
    assert len({frozenset(of) for of in by_method.values()}) == 1
    for method in ("tv", "tv-naive"):
        mine, other = by_method["model"], by_method[method]
        expected = paired_comparison(
            np.array([mine[name].psnr for name in mine]),
            np.array([other[name].psnr for name in mine]),
            [mine[name].patient_id for name in mine],
            higher_is_better=True,
            resamples=summary.resamples,
            seed=summary.bootstrap_seed,
        )
        gain = summary.model_minus[method]["psnr"]
        assert gain is not None
        assert (gain.mean, gain.low, gain.high) == pytest.approx(
            (expected.difference.mean, expected.difference.low, expected.difference.high)
        )
        assert (gain.p_value, gain.share_won) == (expected.p_value, expected.share_won)
    assert json.loads((own_run / BASELINES).read_text())["tuned_on"] == "validation"
    for text in ("Total variation: psnr", "Total variation, naive: psnr", "unet minus Total variation: psnr"):
        assert text in result.out
    page = (own_run / "report.html").read_text(encoding="utf-8")
    assert "Total variation, naive" in page
    # Without them the next evaluation holds nothing of them, nor of how they were tuned.
    done(*words)
    assert list(read_summary(own_run).methods) == ["noisy", "model"]
    assert not (own_run / BASELINES).exists()


@pytest.mark.slow
def test_levels_have_results_of_their_own_that_compare_reads(own_run: Path, flow_cohort: Path, tmp_path: Path) -> None:
    before = [(own_run / name).read_bytes() for name in (PER_IMAGE, SUMMARY)]
    words = ["evaluate", own_run, "--data", flow_cohort, "--no-download"]
    result = done(*words, "--std", "0.2, 0.1", "--methods", "tv", "--workers", 1)
    folders = [own_run / "levels" / name for name in ("std-0.1-mean-0.1", "std-0.2-mean-0.1")]
    assert sorted((own_run / "levels").glob("std-*")) == folders
    assert "at noise 0.1, mean 0.1" in result.out
    assert f"report: {own_run / 'levels' / 'report.html'}" in result.out
    assert [(own_run / name).read_bytes() for name in (PER_IMAGE, SUMMARY)] == before
    weak, own = (read_summary(folder) for folder in folders)
    assert (weak.noise.std, own.noise.std) == (0.1, 0.2)
    # At the noise of its own configuration a level is the plain evaluation.
    done(*words)
    plain = read_summary(own_run)
    assert own.methods["model"] == plain.methods["model"]
    assert own.methods["noisy"] == plain.methods["noisy"]
    noisy = [one.methods["noisy"]["psnr"] for one in (weak, own)]
    assert noisy[0] is not None
    assert noisy[1] is not None
    assert noisy[0].mean > noisy[1].mean + 3
    # A level of one run beside the plain evaluation of another, wherever one stands.
    moved = own_run.rename(tmp_path / "moved")
    done("compare", *(moved / "levels" / folder.name for folder in folders), "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "data:image/png" in page
    assert "trained at" not in page.split("</h1>")[0]


@pytest.mark.slow
def test_levels_go_elsewhere_and_keep_to_a_mean(own_run: Path, flow_cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    words = ["evaluate", own_run, "--data", flow_cohort, "--no-download", "--std", "0.2", "--mean", "0", "--out", out]
    done(*words)
    summary = read_summary(out / "std-0.2-mean-0")
    assert (summary.noise.mean, summary.noise.std) == (0.0, 0.2)
    # The mean that is not the training's is made up for, as it is for whoever denoises such images.
    folder, denoiser = RunFolder(own_run), Denoiser.load(own_run, device="cpu")
    images = TrainingImages.open(flow_cohort, at_noise(folder.config(), summary.noise))
    scores = {s.image_id: s.psnr for s in read_scores(out / "std-0.2-mean-0") if s.method == "model"}
    for row in images.sets["test"]:
        batch = images.held_out_batch(np.array([row]), torch.device("cpu"))
        output = denoiser(batch.noisy[0, 0].numpy(), mean=0.0, warn=False)
        error = float(np.mean((output.astype(np.float64) - batch.clean[0, 0].numpy()) ** 2))
        assert scores[images.image_id(int(row))] == pytest.approx(-10 * np.log10(error), abs=1e-3)
    done("compare", out / "std-0.2-mean-0", "--out", tmp_path / "report.html")
    assert not (own_run / "levels").exists()


@pytest.mark.slow
def test_noise_far_from_that_of_the_training_is_noted_level_by_level(own_run: Path, flow_cohort: Path) -> None:
    words = ["evaluate", own_run, "--data", flow_cohort, "--no-download", "--std", "0.2,0.21,0.9"]
    result = done(*words)
    note = (
        "unet was trained on noise of std 0.2 and mean 0.1, and scored on noise of std 0.9 and mean 0.1, "
        "which is far from that."
    )
    assert [line for line in result.out.splitlines() if "was trained on noise" in line] == [note]
    levels = own_run / "levels"
    noted = [folder.name for folder in levels.glob("std-*") if note in read_summary(folder).notes]
    assert noted == ["std-0.9-mean-0.1"]
    assert note in (levels / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "median"], "bm3d, bm3d-naive, nlm"),
        (["--std", "0.1,zero"], "commas"),
        (["--std", "0"], "above 0"),
        (["--std", "0.1,0.1"], "once"),
        (["--std", "0.1", "--mean", "3"], "[-1, 1]"),
        (["--mean", "0.1"], "--std"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_read(
    own_run: Path, flow_cohort: Path, words: list[str], said: str
) -> None:
    before = sorted(own_run.rglob("*"))
    result = veilray("evaluate", own_run, "--data", flow_cohort, "--no-download", *words)
    assert (result.status, len(result.lines)) == (2, 1)
    assert said in result.err
    assert sorted(own_run.rglob("*")) == before


def test_a_missing_package_names_its_extra(own_run: Path, flow_cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = veilray("evaluate", own_run, "--data", flow_cohort, "--methods", "bm3d")
    assert (result.status, len(result.lines)) == (2, 1)
    assert "extra 'bm3d'" in result.err


@pytest.mark.slow
def test_a_release_has_its_noise_already(own_run: Path, flow_cohort: Path, tmp_path: Path) -> None:
    from tests.command_line import SMALL

    release, run = tmp_path / "release", tmp_path / "other"
    done("obfuscate", flow_cohort, "--out", release, "--std", "0.2", "--pairs", "--consent-clean-images", "--seed", 1)
    done("train", "default", "--data", release, "--out", run, *SMALL, "--set", "train.epochs=1")
    result = veilray("evaluate", run, "--data", release, "--no-download", "--std", "0.1")
    assert (result.status, len(result.lines)) == (2, 1)
    assert "leave --std out" in result.err


def test_a_run_is_not_scored_on_other_data_at_any_level(own_run: Path, tmp_path: Path) -> None:
    other = make_cohort(tmp_path / "other", patients=16)
    result = veilray("evaluate", own_run, "--data", other, "--std", "0.1")
    assert (result.status, len(result.lines)) == (3, 1)
    assert "digest" in result.err
    assert not (own_run / "levels").exists()
