"""Real radiographs in 8 bits, released with clamped noise: what `veilray train default` makes of them by itself."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tests.command_line import done

from veilray.cohort.release import Release
from veilray.evaluation.results import read_summary
from veilray.exchange.release import making
from veilray.exchange.release.pseudonyms import Pseudonyms
from veilray.training.run import RunFolder

PATIENTS = {"train": 40, "validation": 8, "test": 12}
SEED = 5
"""Of the noise: so short a training ends a decibel higher or lower from draw to draw. The pseudonyms, which decide the
order of the images and the draws of a training, are of a fixed key for the same reason."""
SHORT = [
    word
    for setting in (
        *("model.width=8", "model.depth=4", "train.epochs=20", "train.validate_every=2"),
        *("train.batch_size=8", "train.learning_rate=5e-3", "train.warmup_steps=20", "train.ema_decay=0.95"),
        *("launch.device=cpu", "launch.precision=fp32"),
    )
    for word in ("--set", setting)
]
"""The preset made small enough for a test; objective, loss, noise and split are its own."""


@pytest.fixture(scope="module")
def cohort(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    first = {file.stem.partition("_")[0]: file for file in sorted((real_data / "nih256").glob("*.png"), reverse=True)}
    names = [name for name, count in PATIENTS.items() for _ in range(count)]
    chosen = sorted(first.values())[: len(names)]
    with (folder / "split.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = zip((file.stem for file in chosen), names, strict=True)
        csv.writer(stream).writerows([("image_id", "split"), *rows])
    done("import", *chosen, "--out", folder / "cohort", "--size", 64, "--split", folder / "split.csv", "--workers", 1)
    return folder / "cohort"


@pytest.mark.slow
def test_the_default_preset_denoises_an_8_bit_release_without_clean_images(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "_names", lambda parties: Pseudonyms(bytes(32)))
    release, run, scores = (tmp_path / name for name in ("release", "run", "scores"))
    done("obfuscate", cohort, "--out", release, "--std", "0.2", "--seed", str(SEED))
    assert (release / "noisy-64x64-uint8.npy").is_file()
    assert not Release.open(release).pairs
    training = done("train", "default", "--data", release, "--out", run, *SHORT)
    assert "objective: censored_sure" in training.out
    assert "ask the sender" not in training.err
    criterion = [record.validation_loss for record in RunFolder(run).epochs()]
    assert min(criterion) < criterion[0]
    done("evaluate", run, "--data", release, "--originals", cohort, "--out", scores, "--no-download", "--device", "cpu")
    methods = read_summary(scores).methods
    model, noisy = methods["model"]["psnr"], methods["noisy"]["psnr"]
    assert model is not None
    assert noisy is not None
    assert model.mean > noisy.mean + 2.5, (model.mean, noisy.mean)
