"""Networks against classical methods on the same radiographs with the same noise, at several levels.

    python benchmarks/baselines.py --data COHORT --out DIR --model RUN --model default [--lpips-backbone FILE] [--save]

COHORT holds the radiographs with the patients of splits/nih256.csv. Each --model is a run folder, trained on that
cohort, or the name of a network that ships. The strength of every classical method is chosen at each level and for
each form on 24 validation images (evaluation/baselines/tuning.py); the test patients are looked at once, at the end.
What is done stays in DIR and is not done again. BM3D takes seconds an image: with --patients N one image each of N
patients, drawn by a keyed hash, is scored by all methods, networks included. --time N, once all is scored, measures the
seconds of one core anew on N images, on a machine that should do nothing else; without it they are those of the
scoring. --save writes results/baselines.json and the table of docs/explanation/comparison.md; --pages writes the table
from the record that is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from baselines_pages import write_page
from baselines_seconds import FILE, measure, overlaid
from common import RESULTS, save
from veilray.evaluation.baselines.methods import METHODS, licence_notice, parse_methods
from veilray.evaluation.baselines.score import Classical
from veilray.evaluation.compare import compare
from veilray.evaluation.comparison import Arm, Comparison, Level, Pair
from veilray.evaluation.evaluate import evaluate
from veilray.evaluation.levels import at_noise, level_name, parse_levels
from veilray.evaluation.results import BASELINES, SUMMARY
from veilray.evaluation.scoring import Perceptual
from veilray.evaluation.subject import Subject, open_subject
from veilray.files import write_json
from veilray.metrics.lpips import load_lpips
from veilray.obfuscation.config import NoiseConfig
from veilray.parallel.workers import available_cores
from veilray.training.data import TrainingImages
from veilray.training.sets import Rows
from veilray.training.source import open_weights


def main() -> None:
    """Evaluate what is missing, compare, print, and record where --save is given."""
    options = _options()
    if options.pages:
        write_page(json.loads((RESULTS / "baselines.json").read_text(encoding="utf-8")))
        return
    missing = [f"--{name}" for name in ("data", "out", "model") if not getattr(options, name)]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}")
    torch.set_num_threads(options.threads)
    classical = Classical(
        methods=parse_methods(options.methods),
        cache=options.out / "classical.jsonl",
        workers=options.workers,
        tuning_images=options.tuning_images,
    )
    print(licence_notice(classical.methods), file=sys.stderr)
    note = "LPIPS was not computed: no backbone was given."
    perceptual = Perceptual(network=load_lpips(options.lpips_backbone)) if options.lpips_backbone else None
    folders: list[Path] = []
    for name in options.model:
        subject = open_subject(name)
        weights = open_weights(subject.source).sha256
        for noise in parse_levels(options.std, mean=options.mean, trained=subject.config.noise):
            drawn = f"-{options.patients}-patients" if options.patients else ""
            folder = options.out / f"{weights[:12]}{drawn}" / level_name(noise)
            folders.append(folder)
            if not (folder / SUMMARY).exists():
                metric = perceptual or Perceptual(network=None, note=note)
                _evaluate(subject, folder, noise, classical, metric, options)
    comparison = compare(folders)
    if options.time:
        write_json(options.out / FILE, measure(comparison, options.data, images=options.time))
    record = overlaid(_record(comparison, folders, options), options.out)
    for level in record["levels"]:
        for method in level["methods"]:
            print(level["noise"], method["label"], method["metrics"].get("psnr"), method["core_seconds"])
    if options.save:
        save("baselines", record)
        write_page(json.loads((RESULTS / "baselines.json").read_text(encoding="utf-8")))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the cohort")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--model", action="append", help="run folder or shipped name; several may be given")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--std", default="0.1,0.2,0.3")
    parser.add_argument("--mean", type=float, default=0.1)
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--tuning-images", type=int, default=24)
    parser.add_argument("--patients", type=int, default=0, help="score one image each of so many; 0 takes all images")
    parser.add_argument("--time", type=int, default=0, help="measure seconds apart, on so many validation images")
    parser.add_argument("--lpips-backbone", type=Path)
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes for classical methods")
    parser.add_argument("--threads", type=int, default=1, help="of a network; one, as for the others' speed")
    parser.add_argument("--save", action="store_true", help="write results/baselines.json and the page")
    parser.add_argument("--pages", action="store_true", help="write the page from results/baselines.json")
    return parser.parse_args()


def _evaluate(
    subject: Subject,
    folder: Path,
    noise: NoiseConfig,
    classical: Classical,
    perceptual: Perceptual,
    options: argparse.Namespace,
) -> None:
    images = TrainingImages.open(options.data, at_noise(subject.config, noise))
    if options.patients:
        images.sets[options.split] = _one_a_patient(images, options.split, options.patients)
    evaluate(
        subject,
        images,
        out=folder,
        split=options.split,
        perceptual=perceptual,
        device=torch.device("cpu"),
        classical=classical,
        show=_show,
    )


def _one_a_patient(images: TrainingImages, split: str, patients: int) -> Rows:
    """The first image of each of so many patients, drawn by a keyed hash: the same for every network and noise."""
    first = {images.data.patient_id(int(row)): int(row) for row in reversed(images.sets[split])}
    order = sorted(first, key=lambda name: hashlib.blake2b(name.encode(), key=b"benchmarks/baselines").digest())
    return np.array(sorted(first[name] for name in order[:patients]), dtype=np.int64)


@contextmanager
def _show(description: str, total: int) -> Iterator[Callable[[int], None]]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if done == total or 20 * before // total != 20 * done // total:
            print(f"{description}: {done} of {total}", file=sys.stderr, flush=True)

    yield advance


def _record(comparison: Comparison, folders: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    # Of the first network: all get the same.
    folders = folders[: len(comparison.levels)]
    tuned = {folder.name: json.loads((folder / BASELINES).read_text(encoding="utf-8")) for folder in folders}
    return {
        "split": comparison.split,
        "images": len(comparison.image_ids),
        "patients": len(set(comparison.patient_ids)),
        "cohort_digest": comparison.cohort_digest,
        "confidence": comparison.confidence,
        "threads": options.threads,
        "models": [Path(name).name for name in options.model],
        "weights_sha256": [open_weights(open_subject(name).source).sha256 for name in options.model],
        "levels": [_level(level) for level in comparison.levels],
        "tuning": tuned,
        "notes": list(comparison.notes),
    }


def _level(level: Level) -> dict[str, Any]:
    return {
        "noise": level.noise.std_text,
        "mean": level.noise.mean_text,
        "clip": level.noise.clip,
        "methods": [_method(arm) for arm in level.arms],
        "differences": [_difference(pair) for pair in level.pairs],
    }


def _method(arm: Arm) -> dict[str, Any]:
    metrics = {name: value.model_dump() for name, value in arm.metrics.items() if value is not None}
    return {"label": arm.label, "kind": arm.kind, "metrics": metrics, "core_seconds": arm.core_seconds}


def _difference(pair: Pair) -> dict[str, Any]:
    named = {"first": pair.first, "second": pair.second, "metric": pair.metric}
    return {**named, **pair.difference.model_dump(), "p_holm": pair.p_holm, "share_won": pair.share_won}


if __name__ == "__main__":
    main()
