"""veilray import: options reach the cohort, mistakes are told in the user's terms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from veilray.cli.import_ import import_command
from veilray.cohort.cohort import Cohort
from veilray.errors import DataError, UsageError

app = typer.Typer()
app.command()(import_command)


@pytest.fixture
def radiographs(tmp_path: Path) -> Path:
    """30 images of 30 patients, 32x24, 8 bit."""
    folder = tmp_path / "in"
    folder.mkdir()
    for patient in range(30):
        levels = np.random.default_rng(patient).integers(0, 256, (32, 24), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{patient:08}_000.png")
    return folder


def _run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_defaults(radiographs: Path, tmp_path: Path) -> None:
    result = _run(radiographs, "--out", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0
    cohort = Cohort.open(tmp_path / "out")
    assert cohort.sizes == [(256, 256)]
    assert "30 images of 30 patients" in result.stdout
    assert cohort.digest in result.stdout


def test_options(radiographs: Path, tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("image_id,patient_id\n00000003_000,someone\n")
    options = ["--size", "native", "--shares", "0/0/100", "--split-seed", 5, "--patients", tmp_path / "patients.csv"]
    assert _run(radiographs, "--out", tmp_path / "out", "--workers", 1, *options).exit_code == 0
    cohort = Cohort.open(tmp_path / "out")
    assert cohort.sizes == [(32, 24)]
    assert len(cohort.rows("test")) == 30
    assert "someone" in list(cohort.patient_ids)
    assert cohort.record.preprocessing.split_seed == 5


def test_a_split_file(radiographs: Path, tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("image_id,split\n00000003_000,test\n00000004_000,train\n")
    result = _run(radiographs, "--out", tmp_path / "out", "--workers", 1, "--split", tmp_path / "split.csv")
    assert "28 images left out" in result.stdout
    assert sorted(Cohort.open(tmp_path / "out").image_ids) == ["00000003_000", "00000004_000"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "big"], "native"),
        (["--size", "-3"], "size"),
        (["--shares", "80/20"], "80/10/10"),
        (["--split-seed", "-1"], "split seed"),
        (["--split", "none.csv"], r"none\.csv"),
    ],
)
def test_wrong_usage(radiographs: Path, tmp_path: Path, options: list[str], message: str) -> None:
    result = _run(radiographs, "--out", tmp_path / "out", "--workers", 1, *options)
    assert isinstance(result.exception, UsageError)
    assert len(str(result.exception).splitlines()) == 1
    with pytest.raises(UsageError, match=message):
        raise result.exception
    assert not (tmp_path / "out").exists()


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    result = _run(tmp_path / "in", "--out", tmp_path / "out")
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_status == 3
