"""veilray evaluate and compare: the right data or none, and results that stay where they were."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.command_line import SMALL, done, make_cohort, veilray, veilray_process

from veilray.cohort.cohort import Cohort
from veilray.errors import RunError
from veilray.evaluation.results import PER_IMAGE, SUMMARY, read_scores, read_summary
from veilray.training.run import RunFolder
from veilray.training.source import open_weights


@pytest.mark.slow
def test_scores_the_test_images_and_says_so(own_run: Path, flow_cohort: Path) -> None:
    result = done("evaluate", own_run, "--data", flow_cohort, "--no-download")
    summary, scores, cohort = read_summary(own_run), read_scores(own_run), Cohort.open(flow_cohort)
    rows = [int(row) for row in cohort.rows("test")]
    assert {score.image_id for score in scores} == {cohort.image_id(row) for row in rows}
    assert f"{len(rows)} test images of {summary.n_patients} patients" in result.out
    for method, name in (("noisy", "noisy input"), ("model", "unet")):
        psnr = summary.methods[method]["psnr"]
        assert psnr is not None
        assert f"{name}: psnr {psnr.mean:.4g} [{psnr.low:.4g}, {psnr.high:.4g}]" in result.out
    assert "LPIPS was not computed: no AlexNet backbone was given" in result.out
    assert "ssim" in (own_run / "report.html").read_text(encoding="utf-8").lower()


def test_other_data_are_refused_and_the_results_stay(own_run: Path, tmp_path: Path) -> None:
    other = make_cohort(tmp_path / "other", patients=16)
    before = [(own_run / name).read_bytes() for name in (PER_IMAGE, SUMMARY, Path("report.html"))]
    for words in (
        ["evaluate", own_run, "--data", other],
        ["compare", own_run, "--out", tmp_path / "r", "--data", other],
    ):
        result = veilray(*words)
        assert (result.status, len(result.lines)) == (3, 1)
        assert "digest" in result.err
    assert [(own_run / name).read_bytes() for name in (PER_IMAGE, SUMMARY, Path("report.html"))] == before
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_data_of_another_kind_are_told_to_be_others_before_all_else(
    own_run: Path, flow_cohort: Path, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    done("obfuscate", flow_cohort, "--out", release, "--std", "0.3", "--pairs", "--consent-clean-images")
    for words in (["evaluate", own_run, "--data", release], ["train", "--resume", "--data", release, "--out", own_run]):
        result = veilray(*words)
        assert (result.status, len(result.lines)) == (3, 1)
        assert "was trained on data with digest" in result.err


def test_best_weights_that_are_gone_are_not_called_still_to_come(own_run: Path, tmp_path: Path) -> None:
    run = RunFolder(own_run)
    run.best_weights.unlink()
    with pytest.raises(RunError, match=r"has lost its checkpoints/best\.safetensors"):
        open_weights(own_run)
    (own_run / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="its first validation is not done"):
        open_weights(own_run)


def _grey_backbone(path: Path) -> Path:
    """An AlexNet that sees nothing."""
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    tensors = {f"features.{index}.weight": torch.zeros(shape) for index, shape in shapes.items()}
    tensors |= {f"features.{index}.bias": torch.zeros(shape[0]) for index, shape in shapes.items()}
    save_file(tensors, path)
    return path


@pytest.mark.slow
def test_where_images_are_too_small_for_lpips_it_is_not_computed(tmp_path: Path) -> None:
    backbone = _grey_backbone(tmp_path / "alexnet.safetensors")
    cohort = make_cohort(tmp_path, size=31)
    done("train", "default", "--data", cohort, "--out", tmp_path / "run", "--no-evaluate", *SMALL)
    result = done("evaluate", tmp_path / "run", "--data", cohort, "--lpips-backbone", backbone)
    assert "LPIPS was not computed: it needs 32 x 32 pixels, and some images have 31 x 31" in result.out
    assert read_summary(tmp_path / "run").methods["model"]["lpips"] is None


def test_an_altered_backbone_is_named_beside_its_figures(own_run: Path, flow_cohort: Path, tmp_path: Path) -> None:
    backbone = _grey_backbone(tmp_path / "alexnet.safetensors")
    result = done("evaluate", own_run, "--data", flow_cohort, "--lpips-backbone", backbone)
    assert "other convolutions than torchvision's AlexNet" in result.out
    summary = read_summary(own_run)
    assert summary.methods["model"]["lpips"] is not None
    assert any("other convolutions" in note for note in summary.notes)


def test_what_is_no_run_and_what_is_half_of_one(own_run: Path, flow_cohort: Path, tmp_path: Path) -> None:
    for run in (tmp_path / "none", flow_cohort):
        result = veilray("evaluate", run, "--data", flow_cohort)
        assert (result.status, len(result.lines)) == (3, 1)
        assert "holds no run" in result.err
    (own_run / "environment.json").write_text("{")
    result = veilray("evaluate", own_run, "--data", flow_cohort, "--no-download")
    assert (result.status, len(result.lines)) == (3, 1)
    assert "environment.json" in result.err


def test_damaged_weights_are_refused(own_run: Path, flow_cohort: Path) -> None:
    weights = own_run / "checkpoints" / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    result = veilray("evaluate", own_run, "--data", flow_cohort, "--no-download")
    assert result.status == 3
    assert "best.safetensors" in result.lines[-1]
    assert "Traceback" not in result.err


def test_a_backbone_that_is_none_is_named_before_anything_is_scored(own_run: Path, flow_cohort: Path) -> None:
    before = (own_run / SUMMARY).read_bytes()
    for file in (own_run / "none.safetensors", own_run / "config.toml"):
        result = veilray("evaluate", own_run, "--data", flow_cohort, "--lpips-backbone", file)
        assert (result.status, len(result.lines)) == (3, 1)
        assert str(file) in result.err
    assert (own_run / SUMMARY).read_bytes() == before


@pytest.mark.slow
def test_one_run_makes_a_report(flow_run: Path, tmp_path: Path) -> None:
    result = done("compare", flow_run, "--out", tmp_path / "new" / "report.html")
    assert result.out == f"report: {tmp_path / 'new' / 'report.html'}\n"
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64") >= 3
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_a_full_disk_leaves_no_report(flow_run: Path, tmp_path: Path) -> None:
    result = veilray_process("compare", flow_run, "--out", tmp_path / "report.html", largest_file=4096)
    assert (result.status, len(result.lines)) == (1, 1)
    assert "free some space" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_report(flow_run: Path, tmp_path: Path) -> None:
    result = veilray("compare", flow_run, "--out", tmp_path)
    assert (result.status, len(result.lines)) == (2, 1)
    assert str(tmp_path / "report.html") in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_report_is_not_overwritten(flow_run: Path, tmp_path: Path) -> None:
    radiograph = tmp_path / "scan.png"
    radiograph.write_bytes(b"pixels")
    result = veilray("compare", flow_run, "--out", radiograph)
    assert (result.status, len(result.lines)) == (2, 1)
    assert radiograph.read_bytes() == b"pixels"


@pytest.mark.slow
def test_without_the_cohort_the_report_has_no_pictures_and_says_so(flow_cohort: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(flow_cohort, tmp_path / "cohort"))
    done("train", "default", "--data", moved, "--out", tmp_path / "run", *SMALL, "--set", "train.epochs=1")
    moved.rename(tmp_path / "elsewhere")
    result = done("compare", tmp_path / "run", "--out", tmp_path / "report.html")
    assert result.err.startswith("no pictures in the report: ")
    assert "data:image/png" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    done("compare", tmp_path / "run", "--out", tmp_path / "again.html", "--data", tmp_path / "elsewhere")
    assert "data:image/png" in (tmp_path / "again.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_runs_of_two_noises_and_two_seeds(flow_run: Path, flow_cohort: Path, tmp_path: Path) -> None:
    runs = [flow_run]
    for name, setting in (("seed", "seed=18"), ("strong", "noise.std=0.3")):
        runs.append(tmp_path / name)
        settings = [*SMALL, "--set", "train.epochs=1"] if name == "strong" else SMALL
        done("train", "default", "--data", flow_cohort, "--out", runs[-1], *settings, "--set", setting)
    done("compare", *runs, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for figure in ("0.2", "0.3", "17 and 18"):
        assert figure in page
    done("compare", *reversed(runs), "--out", tmp_path / "reversed.html")
    assert (tmp_path / "reversed.html").read_text(encoding="utf-8") == page


@pytest.mark.slow
def test_runs_that_cannot_be_compared(own_run: Path, flow_run: Path, flow_cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    twice = veilray("compare", own_run, flow_run, "--out", out)
    assert (twice.status, len(twice.lines)) == (2, 1)
    assert "same configuration and seed" in twice.err
    done("evaluate", own_run, "--data", flow_cohort, "--no-download")
    sets = veilray("compare", own_run, flow_run, "--out", out)
    assert (sets.status, len(sets.lines)) == (2, 1)
    assert "split" in sets.err
    (own_run / SUMMARY).unlink()
    missing = veilray("compare", own_run, "--out", out)
    assert (missing.status, len(missing.lines)) == (3, 1)
    assert f"veilray evaluate {own_run}" in missing.err
    nowhere = veilray("compare", tmp_path / "nowhere", "--out", out)
    assert (nowhere.status, nowhere.lines) == (3, [f"veilray: {tmp_path / 'nowhere'} does not exist"])
    assert not out.exists()
