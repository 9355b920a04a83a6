"""What a denoiser gives away of the patients it was trained on: with clean targets, and with noisy images alone.

    python benchmarks/noisy_only_privacy.py --data shared/data/nih256 [--work DIR] [--shadows 16] [--save]
    python benchmarks/noisy_only_privacy.py --pages

One small network, trained twice on the same patients for as many steps: at Site One on the clean images, and at Site
Two on one clamped release of them, by the objective that `train.objective = "auto"` takes. Both see one noise of each
image, drawn once, as a release has it. Both
face the audit's membership attacks (a threshold on the loss; the likelihood ratio of shadow models, each trained as
its target was) and its reconstruction, of the released images. Membership is of patients: half of those asked about
were trained on. Patients are from the training and validation sets of `splits/nih256.csv`; its test
patients are not looked at. What is done of a model is kept in `--work`; `--kinds` does one of the two alone.
`--pages` writes the section of docs/explanation/privacy-audit.md from the record.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import RESULTS, save, table
from veilray.cohort.cohort import Cohort
from veilray.cohort.release import Release
from veilray.files import read_json, write_json
from veilray.inference.denoiser import Denoiser
from veilray.privacy import reconstruction
from veilray.privacy.data import AuditData, Variant
from veilray.privacy.extent import FULL
from veilray.privacy.material import open_originals, release_variant
from veilray.privacy.released_model import attack_run
from veilray.privacy.results import AttackResult, Skipped
from veilray.privacy.variants import denoised_variant
from veilray.training.run import RunFolder

SPLIT = Path(__file__).parent / "splits" / "nih256.csv"
PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "privacy-audit.md"
BEGIN, END = "<!-- noisy only: made by benchmarks/noisy_only_privacy.py -->", "<!-- end of noisy only -->"
SIZE, STD = 32, 0.2
COUNTS = {"train": 60, "validation": 15, "test": 60}
SETTINGS = [
    *("model.width=8", "model.depth=4", "train.epochs=40", "train.batch_size=8", "train.ema_decay=0.98"),
    *("launch.device=cpu", "launch.precision=fp32"),
]
FIXED = "noise.fresh=false"
EARLIER = "new noise every epoch for the supervised one (as the script was then; now both see one noise an image)"
"""What the training on clean images is told, so that it sees one noise an image, as a release gives it."""
KINDS = {"supervised": "trained on the clean images", "noisy only": "trained on the noisy images alone"}
SEED = 1


def main() -> None:
    """Train, attack, record, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of nih256")
    parser.add_argument("--work", type=Path, default=Path("noisy-only-privacy"))
    parser.add_argument("--shadows", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="which of the two")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--pages", action="store_true", help="write the page from the record and measure nothing")
    options = parser.parse_args()
    if not options.pages:
        if options.data is None:
            parser.error("--data is missing")
        torch.set_num_threads(1)
        found = measure(options)
        _show(found)
        if options.save:
            save("noisy_only_privacy", found)
    if options.pages or options.save:
        write_page(json.loads((RESULTS / "noisy_only_privacy.json").read_text(encoding="utf-8")))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both models, what membership inference tells of each, and what each restores."""
    work = options.work
    cohort, release = _data(options.data, work)
    models = {}
    for kind in options.kinds:
        done = work / f"{kind.replace(' ', '-')}-{options.shadows}.json"
        if not done.is_file():
            write_json(done, _attacked(kind, cohort, release, work, options.shadows))
        models[kind] = read_json(done)
    return {
        "setting": {
            "size": SIZE,
            "std": STD,
            "mean": 0.1,
            "clip": True,
            "patients": COUNTS,
            "settings": SETTINGS,
            "supervised": FIXED,
        },
        "shadows": options.shadows,
        "images": {name: len(Cohort.open(cohort).rows(name)) for name in COUNTS},
        "models": models,
    }


def _attacked(kind: str, cohort: Path, release: Path, work: Path, shadows: int) -> dict[str, Any]:
    """One model: its training where that was not done, and both attacks."""
    run = work / kind.replace(" ", "-")
    data = cohort if kind == "supervised" else release
    settings = [*SETTINGS, FIXED] if kind == "supervised" else SETTINGS
    resume = ["--resume"] if (run / "environment.json").is_file() else []
    _veilray("train", "default", "--data", data, "--out", run, "--no-evaluate", *resume, *_sets(settings))
    began = time.process_time()
    on = None if kind == "supervised" else release
    outcomes = attack_run(run, cohort, release=on, seeds=[SEED], progress=_say, shadows=shadows)
    return {
        "objective": RunFolder(run).config().train.objective,
        "membership": _recorded(outcomes),
        "reconstruction": _reconstruction(run, cohort, release, work),
        "core_seconds_of_the_attacks": time.process_time() - began,
    }


def _data(images: Path, work: Path) -> tuple[Path, Path]:
    """The cohort and its release, made where they are missing."""
    cohort, release = work / "cohort", work / "release"
    if not cohort.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        files, sets = _chosen(images)
        with (work / "split.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([("image_id", "split"), *sets.items()])
        _veilray("import", *files, "--out", cohort, "--size", SIZE, "--split", work / "split.csv")
    if not release.is_dir():
        _veilray("obfuscate", cohort, "--out", release, "--std", STD)
    return cohort, release


def _chosen(images: Path) -> tuple[list[Path], dict[str, str]]:
    """Files and their sets: patients in the order of a digest, none of the split's test patients."""
    with SPLIT.open(newline="", encoding="utf-8") as stream:
        free = {row["image_id"] for row in csv.DictReader(stream) if row["split"] != "test"}
    files = [file for file in sorted(images.glob("*.png")) if file.stem in free]
    patients = sorted({_patient(file) for file in files}, key=lambda name: hashlib.sha256(name.encode()).digest())
    names = [name for name, count in COUNTS.items() for _ in range(count)]
    set_of = dict(zip(patients, names, strict=False))
    kept = [file for file in files if _patient(file) in set_of]
    return kept, {file.stem: set_of[_patient(file)] for file in kept}


def _patient(file: Path) -> str:
    return file.stem.partition("_")[0]


def _reconstruction(
    run: Path, cohort_folder: Path, release_folder: Path, work: Path
) -> dict[str, list[dict[str, Any]]]:
    """What the model makes of the released images, of patients it was trained on and of others."""
    cohort, release = Cohort.open(cohort_folder), Release.open(release_folder)
    originals = open_originals(cohort)
    noisy = release_variant(release, cohort, originals, name="release")
    network = Denoiser.load(run, device="cpu")
    assert network.origin is not None
    found = {}
    for name, split in (("members", "train"), ("others", "test")):
        codes = cohort.rows(split)
        rows = tuple(np.flatnonzero(np.isin(originals.rows, codes)).tolist())
        variant = denoised_variant(
            replace(noisy, rows=rows),
            network,
            folder=work / "private",
            data=originals.data,
            digest=f"{network.origin.weights_sha256} {name}",
        )
        found[name] = _recorded(_restored(originals.data, variant))
    return found


def _restored(data: AuditData, variant: Variant) -> Sequence[AttackResult | Skipped]:
    return reconstruction.run(data, variant, extent=FULL, seeds=[SEED], progress=_say)


def _recorded(outcomes: Sequence[AttackResult | Skipped]) -> list[dict[str, Any]]:
    return [one.model_dump(mode="json", exclude={"curve"}) for one in outcomes if isinstance(one, AttackResult)]


def _sets(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _veilray(*words: object) -> None:
    command = [sys.executable, "-c", "from veilray.cli.main import run; run()", *map(str, words)]
    subprocess.run(command, check=True)


def _rows(record: dict[str, Any]) -> list[list[str]]:
    """A row for each figure, a column for each model."""
    rows: dict[str, list[str]] = {}
    for model in record["models"].values():
        for one in model["membership"]:
            chance = f", guessing {one['chance']:g}"
            rows.setdefault(f"membership, {one['attacker']}, {one['metric']}{chance}", []).append(_figure(one, 3))
        for whose, results in model["reconstruction"].items():
            for one in results:
                digits = 2 if one["metric"] == "psnr" else 3
                rows.setdefault(f"reconstruction of {whose}, {one['metric']}", []).append(_figure(one, digits))
    return [[name, *cells] for name, cells in rows.items()]


def _figure(one: dict[str, Any], digits: int) -> str:
    return f"{one['value']:.{digits}f} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"


def _show(record: dict[str, Any]) -> None:
    print(table(["figure", *record["models"]], _rows(record)))


def write_page(record: dict[str, Any]) -> None:
    """The table in the page, between its marks."""
    heads = [f"{kind}: {KINDS[kind]}" for kind in record["models"]]
    lines = [["figure", *heads], ["---"] * (1 + len(heads)), *_rows(record)]
    images, hardware = record["images"], record["hardware"]
    fixed = record["setting"].get("supervised") == FIXED
    noise = "one noise an image for both" if fixed else EARLIER
    said = (
        f"{COUNTS['train']} patients trained on ({images['train']} images) and {COUNTS['test']} others "
        f"({images['test']} images), {SIZE} x {SIZE} pixels, noise {STD} clamped; U-Net of width 8 and depth 4, "
        f"40 epochs, {noise}; {record['shadows']} shadow models each; one seed; "
        f"{hardware['device']}, {hardware['date']}. 95 % intervals, by patient. Objective on noisy images: "
        f"`{record['models']['noisy only']['objective']}`."
    )
    text = "\n".join([said, "", *(f"| {' | '.join(line)} |" for line in lines)])
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise SystemExit(f"{PAGE} has no place for the figures")
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
