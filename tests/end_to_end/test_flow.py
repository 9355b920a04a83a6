"""The whole flow of both sites through the command line, small: on phantoms, and on real radiographs."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from tests.command_line import SMALL, done, veilray

from veilray.cli import demo
from veilray.cohort.cohort import Cohort
from veilray.cohort.release import Release
from veilray.evaluation.results import read_summary
from veilray.images.phantom import write_phantoms
from veilray.training.run import RunFolder

SPLIT = Path(__file__).parents[2] / "benchmarks" / "splits" / "nih256.csv"


class References(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "xlink:href") and value:
                self.found.append(value)
            assert tag not in ("script", "link", "iframe"), tag


def _assert_self_contained(report: Path) -> str:
    page = report.read_text(encoding="utf-8")
    references = References()
    references.feed(page)
    assert references.found
    assert {ref for ref in references.found if not ref.startswith(("data:", "#"))} == set()
    assert not re.search(r"url\((?!['\"]?(data:|#))", page)
    assert "@import" not in page
    return page


@pytest.mark.slow
def test_import_obfuscate_train_evaluate_compare_denoise(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "phantoms", patients=16, follow_ups=2, seed=3, size=64)
    cohort, release = tmp_path / "cohort", tmp_path / "release"
    options = ["--size", 64, "--shares", "50/25/25", "--workers", 1]
    done("import", tmp_path / "phantoms", "--out", cohort, *options)
    done("obfuscate", cohort, "--out", release, "--std", "0.2", "--pairs", "--consent-clean-images")
    images = len(list((tmp_path / "phantoms").rglob("*.png")))
    assert len(Release.open(release)) == len(Cohort.open(cohort)) == images > 16

    runs = []
    for name, model, data in (
        ("unet", "unet", cohort),
        ("unetpp", "unetpp", cohort),
        ("released-unet", "unet", release),
        ("released-unetpp", "unetpp", release),
    ):
        run = tmp_path / "runs" / name
        more = [f"model.name={model}", "train.learning_rate=0.01", "train.ema_decay=0.5", "train.epochs=3"]
        words = ["train", "default", "--data", data, "--out", run, "--no-evaluate", *SMALL]
        done(*words, *(word for setting in more for word in ("--set", setting)))
        result = done("evaluate", run, "--data", data, "--no-download")
        assert str(run / "report.html") in result.out
        assert RunFolder(run).environment()["cohort_digest"] == read_summary(run).cohort_digest
        _assert_self_contained(run / "report.html")
        runs.append(run)

    # The noise is the same law: so is the quality of the noisy input.
    psnr = [read_summary(run).methods["noisy"]["psnr"] for run in runs]
    assert all(value is not None for value in psnr)
    means = [value.mean for value in psnr if value is not None]
    assert means[0] == means[1]
    assert means[2] == means[3]
    assert means[2] == pytest.approx(means[0], abs=0.3)

    for pair, name in ((runs[:2], "cohort"), (runs[2:], "release")):
        done("compare", *pair, "--out", tmp_path / f"{name}.html")
        page = _assert_self_contained(tmp_path / f"{name}.html")
        for words in ("U-Net++", "PSNR", "SSIM", "LPIPS was not computed"):
            assert words in page, words
        assert page.count("data:image/png;base64") >= 6
    other = ["compare", runs[0], runs[2], "--out", tmp_path / "both.html"]
    refused = veilray(*other)
    assert refused.status == 2
    assert "digest" in refused.err

    done("denoise", release, "--out", tmp_path / "denoised", "--model", runs[2])
    written = sorted((tmp_path / "denoised").glob("*.png"))
    assert {path.stem for path in written} == set(Release.open(release).image_ids)
    with Image.open(written[0]) as image:
        assert (image.size, image.mode) == ((64, 64), "L")


@pytest.mark.slow
def test_the_demo_ends_with_a_report_that_says_what_was_held_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "CROPS", dict.fromkeys(demo.CROPS, 8))
    data, out = tmp_path / "radiographs", tmp_path / "out"
    write_phantoms(data, patients=24, follow_ups=1, seed=3, size=256)
    files = sorted(data.glob("*.png"))
    with Image.open(files[0]) as image:
        written = image.convert("L")
    ImageDraw.Draw(written).text((12, 6), "DOE JANE 1950", fill=255, font=ImageFont.load_default(14))
    written.save(files[0])

    result = done("demo", "--data", data, "--out", out)
    page = _assert_self_contained(out / "report.html")
    assert result.out.rstrip().endswith(f"The report is in {out / 'report.html'}")
    assert f"held 1 of {len(files)} imported images back" in page
    assert "U-Net++" in page
    assert len(list((out / "denoised").glob("*.png"))) == len(files) - 1
    assert {path.name for path in (out / "runs").iterdir()} == {"unet", "unetpp"}
    again = veilray("demo", "--data", data, "--out", out)
    assert again.status == 2
    assert "not empty" in again.err


@pytest.mark.slow
@pytest.mark.real
def test_real_radiographs(real_data: Path, tmp_path: Path) -> None:
    cohort_path = tmp_path / "cohort"
    done("import", real_data / "nih256", "--out", cohort_path, "--split", SPLIT, "--size", 64)
    cohort = Cohort.open(cohort_path)
    assert {name: len(cohort.rows(name)) for name in ("train", "validation", "test")} == {  # type: ignore[arg-type]
        "train": 685,
        "validation": 60,
        "test": 119,
    }
    with SPLIT.open(newline="", encoding="utf-8") as stream:
        listed = {row["image_id"]: row["split"] for row in csv.DictReader(stream)}
    test = {cohort.image_id(int(row)) for row in cohort.rows("test")}
    assert test == {name for name, split in listed.items() if split == "test"} & set(cohort.image_ids)
    patients = [{cohort.patient_id(int(row)) for row in cohort.rows(name)} for name in ("train", "validation", "test")]  # type: ignore[arg-type]
    assert not patients[0] & (patients[1] | patients[2])
    assert not patients[1] & patients[2]

    run = tmp_path / "run"
    more = ["train.epochs=1", "train.batch_size=64", "train.learning_rate=0.01", "train.ema_decay=0.5"]
    words = ["train", "default", "--data", cohort_path, "--out", run, "--no-evaluate", *SMALL]
    done(*words, *(word for setting in more for word in ("--set", setting)))
    result = done("evaluate", run, "--data", cohort_path, "--no-download")
    assert "119 test images of" in result.out
    summary = read_summary(run)
    noisy, model = (summary.methods[name]["psnr"] for name in ("noisy", "model"))
    assert noisy is not None
    assert model is not None
    assert noisy.low < noisy.mean < noisy.high
    assert np.isfinite([model.low, model.mean, model.high]).all()
    _assert_self_contained(run / "report.html")
