"""veilray obfuscate: options reach the release, and what it does not hide is said."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from tests.command_line import done, veilray, veilray_process
from typer.testing import CliRunner, Result

from veilray.cli.obfuscate import obfuscate_command
from veilray.cohort.build import import_radiographs
from veilray.cohort.release import Release
from veilray.errors import RefusedError, UsageError, VeilrayError
from veilray.exchange.keys.folder import KeyFolder

app = typer.Typer()
app.command()(obfuscate_command)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """6 images of 3 patients, 16x16, 8 bit."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        levels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{number // 2:08}_{number % 2:03}.png")
    import_radiographs([folder], tmp_path / "cohort", size=None, workers=1)
    return tmp_path / "cohort"


@pytest.mark.slow
def test_a_full_disk_leaves_no_release(cohort: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = veilray_process("obfuscate", cohort, "--out", tmp_path / "release", "--std", "0.2", largest_file=1024)
    assert (result.status, result.lines[-1].count("free some space")) == (1, 1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def _run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_defaults(cohort: Path, tmp_path: Path) -> None:
    result = _run(cohort, "--out", tmp_path / "out")
    assert result.exit_code == 0
    release = Release.open(tmp_path / "out")
    assert (release.noise.mean, release.noise.std, release.noise.clip) == (0.1, 0.2, True)
    assert not release.pairs
    assert not release.record.subtractable
    assert release.digest in result.stdout
    assert "released" not in result.stdout
    assert "cannot be repeated" in result.stdout


def test_a_folder_that_is_there_is_refused_before_any_image_is_looked_at(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*arguments: object, **options: object) -> None:
        raise AssertionError("images are looked at")

    monkeypatch.setattr("veilray.exchange.release.making.look", look)
    result = _run(cohort, "--out", cohort)
    assert isinstance(result.exception, UsageError)
    assert "already exists" in str(result.exception)


def test_options(cohort: Path, tmp_path: Path) -> None:
    options = ["--mean", "0", "--std", "0.05,0.4", "--no-clip", "--pairs", "--seed", "3", "--consent-clean-images"]
    result = _run(cohort, "--out", tmp_path / "out", *options)
    release = Release.open(tmp_path / "out")
    assert (release.noise.mean, release.noise.std, release.noise.clip) == (0.0, (0.05, 0.4), False)
    assert release.pairs
    assert release.record.subtractable
    assert "no image privacy whatever" in result.stdout
    assert "no ledger remembers it" in result.stdout
    assert "cannot be repeated" not in result.stdout
    assert "once before" in _run(cohort, "--out", tmp_path / "again").stdout


@pytest.mark.parametrize("std", ["0", "-0.1", "nan", "x", "", "0.4,0.1", "0.1,0.2,0.3", "inf"])
def test_standard_deviations_that_are_none(cohort: Path, tmp_path: Path, std: str) -> None:
    result = _run(cohort, "--out", tmp_path / "out", f"--std={std}")
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith("--std")
    assert len(str(result.exception).splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Keys of Site One that know site two."""
    one = KeyFolder.create(tmp_path / "keys", name="one")
    one.pin(KeyFolder.create(tmp_path / "two", name="two", role="site-two").card)
    return tmp_path / "keys"


def test_with_keys(cohort: Path, keys: Path, tmp_path: Path) -> None:
    result = _run(cohort, "--out", tmp_path / "out", "--keys", keys, "--receiver", "two", "--fields", "none")
    assert result.exit_code == 0
    release = Release.open(tmp_path / "out")
    assert release.record.noise_source == "secret"
    assert release.record.fields == ()
    assert "No keys" not in result.stdout
    again = _run(cohort, "--out", tmp_path / "weaker", "--keys", keys, "--receiver", "two", "--std", "0.1")
    assert isinstance(again.exception, RefusedError)
    pairs = _run(cohort, "--out", tmp_path / "pairs", "--keys", keys, "--receiver", "two", "--pairs")
    assert isinstance(pairs.exception, RefusedError)
    log = [json.loads(line) for line in (keys / "exchange/log.jsonl").read_text().splitlines()]
    assert [{**line, "time": ""} for line in log] == [
        {"time": "", "event": "refused", "reason": reason} for reason in ("ledger", "consent")
    ]
    answered = ["--override-name", "Dr. A", "--override-reason", "study 7"]
    over = _run(cohort, "--out", tmp_path / "weaker", "--keys", keys, "--receiver", "two", "--std", "0.1", *answered)
    assert "objections to 6 images were overridden" in over.stdout


@pytest.mark.slow
def test_the_ledger_says_what_left_of_which_images(cohort: Path, keys: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("image_id\n00000001_000\n00000001_001\n")
    history = ("ledger", "history", keys, cohort, "--images", mine)
    assert done(*history).out.startswith("of 0 of 2 images")
    _run(cohort, "--out", tmp_path / "noisier", "--keys", keys, "--receiver", "two", "--std", "0.3")
    _run(cohort, "--out", tmp_path / "again", "--keys", keys, "--receiver", "two", "--std", "0.3", "--mean", "0.1")
    said = done(*history).out.splitlines()
    release = Release.open(tmp_path / "noisier").record.release_id
    assert sum(release in line for line in said) == 2
    assert all("committed: noise of std 0.3, native, two" in line for line in said[:-1])
    assert (len(said), said[-1][:21]) == (5, "of 2 of 2 images some")
    assert "00000001" not in "".join(said).replace(release, "")
    assert done("ledger", "history", keys, cohort).out.count(release) == 6
    mine.write_text("image_id\nunknown\n")
    assert veilray(*history).status == 3


def test_a_dry_run_writes_nothing(cohort: Path, keys: Path, tmp_path: Path) -> None:
    before = sorted(path for path in tmp_path.rglob("*"))
    result = _run(cohort, "--keys", keys, "--receiver", "two", "--dry-run", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert sorted(path for path in tmp_path.rglob("*")) == before
    for said in ("6 images of 3 patients would leave", "noisy-16x16-uint8.npy", "index.csv", '"statement"', "view"):
        assert said in result.stdout
    assert "The ledger has 0 objections." in result.stdout
    _run(cohort, "--keys", keys, "--receiver", "two", "--out", tmp_path / "made")
    with (tmp_path / "made/index.csv").open(newline="") as stream:
        made = list(csv.DictReader(stream))
    said = result.stdout.partition("every line")[2].splitlines()[1 : len(made) + 2]
    shown = list(csv.DictReader(line.strip() for line in said))
    assert len(shown) == 6
    # But for what is measured while the noise is drawn, the lines are those of the file.
    known = [name for name in made[0] if all(line[name] == one[name] for line, one in zip(shown, made, strict=True))]
    assert {"image_id", "patient_id", "split", "view", "spacing"} <= set(known)
    assert list(shown[0]) == list(made[0])


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (["--dry-run", "--fields", "view,name"], UsageError, "--fields 'name'"),
        (["--dry-run", "--blank", "1,2"], UsageError, "X,Y,WIDTH,HEIGHT"),
        (["--dry-run", "--receiver", "two"], UsageError, "need --keys"),
        (["--dry-run", "--keys", "KEYS"], UsageError, "--receiver is missing"),
        (["--dry-run", "--keys", "KEYS", "--receiver", "nobody"], RefusedError, "nobody"),
        (["--dry-run", "--keys", "KEYS", "--receiver", "two", "--override-name", "a"], UsageError, "go together"),
        (["--dry-run", "--keys", "KEYS", "--receiver", "two", "--std", "0.25"], UsageError, "0.1, 0.2, 0.3"),
        (["--dry-run", "--pairs"], RefusedError, "--consent-clean-images"),
        (["--dry-run", "--reviewed", "nowhere.csv"], UsageError, "not a file"),
        ([], UsageError, "--out is missing"),
    ],
)
def test_requests_that_do_not_hold_together(
    cohort: Path, keys: Path, options: list[str], kind: type[VeilrayError], message: str
) -> None:
    result = _run(cohort, *(str(keys) if word == "KEYS" else word for word in options))
    assert isinstance(result.exception, kind)
    assert message in str(result.exception)
