"""veilray models, and the network that denoise and evaluate take by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.command_line import done, veilray
from tests.models.shipped_model import ship

from veilray.evaluation.results import read_summary
from veilray.images.radiograph import to_levels
from veilray.images.read import read_radiograph
from veilray.inference.denoiser import Denoiser
from veilray.models.shipped import find


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where networks ship from; empty at first."""
    monkeypatch.setattr(find, "FOLDER", tmp_path / "shipped")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "shipped"


def _image(path: Path, *, colour: bool = False) -> Path:
    levels = np.random.default_rng(1).integers(100, 140, (40, 48) + ((3,) if colour else ()), dtype=np.uint8)
    Image.fromarray(levels if not colour else levels * np.array([1, 0, 1], dtype=np.uint8)).save(path)
    return path


def test_where_none_ships_it_is_said(folder: Path) -> None:
    assert "No network ships" in done("models").out
    result = veilray("models", "default")
    assert (result.status, len(result.lines)) == (2, 1)
    assert "none ships" in result.err
    result = veilray("denoise", _image(Path("scan.png")), "--out", "out")
    assert (result.status, len(result.lines)) == (2, 1)
    assert "--model" in result.err
    assert "none" in result.err or "no model" in result.err
    assert not Path("out").exists()


def test_the_list_and_the_card_hold_what_the_card_s_file_says(folder: Path) -> None:
    card = ship(folder)
    ship(folder, "fast")
    listed = done("models").out
    for text in ("default: A tiny", "fast: A tiny", "CC0", "31.25 [30.5, 32]", "25 images/s", f"{card.parameters:,}"):
        assert text in listed
    shown = done("models", "default").out
    for text in (
        "Not a medical device",
        "It was never trained.",
        card.weights_sha256,
        card.config_digest,
        "12 patients",
    ):
        assert text in shown
    result = veilray("models", "slow")
    assert (result.status, len(result.lines)) == (2, 1)
    assert "default, fast" in result.err


@pytest.mark.slow
def test_denoise_takes_the_default_and_warns_of_what_it_doubts(folder: Path) -> None:
    ship(folder)
    scan = _image(Path("scan.png"))
    Path("default").mkdir()  # which is not what leaving --model out means
    result = done("denoise", scan, "--out", "out", "--device", "cpu")
    expected = Denoiser.load("shipped:default", device="cpu")(read_radiograph(scan).pixels)
    with Image.open(Path("out") / "scan.png") as image:
        np.testing.assert_array_equal(np.asarray(image), to_levels(expected, np.uint8))
    assert "1 images denoised" in result.out
    photo = done("denoise", _image(Path("photo.png"), colour=True), "--out", "out", "--device", "cpu")
    assert any("warning: photo.png: it is a picture in colour" in line for line in photo.lines)
    Path("many").mkdir()
    for number in range(7):
        _image(Path("many") / f"{number}.png", colour=True)
    many = done("denoise", "many", "--out", "out", "--device", "cpu")
    assert sum("in colour" in line for line in many.lines) == 5
    assert "doubtful for 7 images" in many.err


@pytest.mark.slow
def test_a_shipped_network_is_scored_where_its_results_are_wanted(folder: Path, flow_cohort: Path) -> None:
    ship(folder)
    words = ["evaluate", "default", "--data", flow_cohort, "--no-download", "--device", "cpu"]
    missing = veilray(*words)
    assert (missing.status, len(missing.lines)) == (2, 1)
    assert "--out" in missing.err
    result = done(*words, "--std", "0.1,0.2", "--out", "results")
    assert "default: psnr" in result.out
    assert "trained on other data (phantoms)" in result.out
    summary = read_summary(Path("results") / "std-0.1-mean-0.1")
    assert summary.model == "shipped:default"
    done("compare", *sorted(Path("results").glob("std-*")), "--out", "report.html")
    assert "data:image/png" in Path("report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_shipped_network_is_scored_on_a_release_of_any_noise(folder: Path, flow_cohort: Path) -> None:
    ship(folder)
    noise = ["--std", "0.15", "--mean", "0.05"]
    done("obfuscate", flow_cohort, "--out", "release", *noise, "--pairs", "--consent-clean-images", "--seed", 1)
    done("evaluate", "default", "--data", "release", "--no-download", "--device", "cpu", "--out", "results")
    summary = read_summary(Path("results"))
    assert (summary.noise.mean, summary.noise.std, summary.test_noise_seed) == (0.05, 0.15, None)
    assert summary.methods["model"]["psnr"] is not None
