"""veilray demo: the whole flow, small, on phantoms or on given radiographs."""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

PATIENTS, FOLLOW_UPS, SEED = 60, 3, 17
STD = 0.2
# Crops that each network sees while training: about 40 seconds each on two cores.
CROPS = {"unet": 640, "unetpp": 640}
WIDTHS = {"unet": 16, "unetpp": 8}


def demo_command(
    data: Annotated[
        Path | None, typer.Option(help="Folder of radiographs; left out, chest phantoms are made.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
) -> None:
    """Run import, obfuscate, train (U-Net, U-Net++), evaluate, compare and denoise; ends with report.html."""
    from veilray.cohort.open import open_data
    from veilray.errors import UsageError

    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; remove it or name another folder with --out")
    began = time.monotonic()
    if data is None:
        data = out / "phantoms"
        _make_phantoms(data)
    cohort, release, report = out / "cohort", out / "release", out / "report.html"
    _veilray("import", data, "--out", cohort, "--size", "256", "--shares", "70/10/20")
    _veilray("obfuscate", cohort, "--out", release, "--std", STD, "--pairs", "--consent-clean-images")
    released = open_data(release)
    images = int((released.split_codes == 0).sum())
    held_back = len(open_data(cohort)) - len(released)
    runs = []
    for model in ("unet", "unetpp"):
        runs.append(out / "runs" / model)
        settings = {
            "model.name": model,
            "model.width": WIDTHS[model],
            "train.batch_size": 4,
            "train.crop": 128,
            "train.learning_rate": 2e-3,
            "train.epochs": max(2, math.ceil(CROPS[model] / images)),
            "train.ema_decay": 0.99,
        }
        changes = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        _veilray("train", "default", "--data", release, "--out", runs[-1], "--no-evaluate", *changes)
        _veilray("evaluate", runs[-1], "--data", release, "--no-download")
    notes = ["--note", _held_back(held_back, len(released))] if held_back else []
    _veilray("compare", *runs, "--out", report, *notes)
    _veilray("denoise", release, "--out", out / "denoised", "--model", runs[0])
    typer.echo(f"\nAll of it took {(time.monotonic() - began) / 60:.1f} minutes. The report is in {report}")


def _held_back(images: int, released: int) -> str:
    return (
        f"The search for burned-in text held {images:,} of {images + released:,} imported images back from the "
        "release. None of them was trained on or scored, so these figures are for images without text-like regions."
    )


def _make_phantoms(folder: Path) -> None:
    from veilray.images.phantom import write_phantoms

    typer.echo(f"making chest phantoms of {PATIENTS} patients in {folder}")
    write_phantoms(folder, patients=PATIENTS, follow_ups=FOLLOW_UPS, seed=SEED, size=256)


def _veilray(*words: object) -> None:
    """Run a command of Veilray as a user would, and show it."""
    from veilray.cli.main import app

    arguments = [str(word) for word in words]
    typer.echo(f"\n$ veilray {shlex.join(arguments)}")
    app(args=arguments, standalone_mode=False)
