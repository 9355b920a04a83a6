"""Networks beside each other on one set at one noise, seeds averaged: what specialists.py and rivals.py share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from equal_compute import Scores
from veilray.evaluation.evaluate import evaluate
from veilray.evaluation.levels import at_noise
from veilray.evaluation.results import METRICS
from veilray.evaluation.scoring import Perceptual
from veilray.evaluation.subject import open_subject
from veilray.metrics.lpips import load_lpips
from veilray.obfuscation.config import NoiseConfig
from veilray.training.data import TrainingImages

MEAN = 0.1
LEVELS = ("0.1", "0.2", "0.3")
SHIPPED = "shipped:default"


def compared(
    arms: Mapping[str, Sequence[str | Path]],
    cohort: Path,
    level: str,
    *,
    against: str,
    options: argparse.Namespace,
    folder: Path,
) -> dict[str, Any]:
    """Scores of arms, each a network of every seed, at noise of one std, and what each is worth more than `against`.

    `options` name the set and the backbone of LPIPS; results are left in `folder`.
    """
    scores = _scored(arms, cohort, level, options, folder)
    others = [name for name in arms if name != against]
    return {
        "images": len(scores.image_ids),
        "patients": len(set(scores.patients)),
        "metrics": {name: {metric: scores.mean(name, metric) for metric in METRICS} for name in arms},
        "against": against,
        "differences": {
            name: {metric: scores.difference(name, against, metric) for metric in METRICS} for name in others
        },
    }


def _scored(
    arms: Mapping[str, Sequence[str | Path]], cohort: Path, level: str, options: argparse.Namespace, folder: Path
) -> Scores:
    """Every network of every arm on the set that the options name, at one level."""
    perceptual = Perceptual(network=None, note="LPIPS was not computed: no backbone was given.")
    if options.lpips_backbone:
        perceptual = Perceptual(network=load_lpips(options.lpips_backbone))
    noise = NoiseConfig(mean=MEAN, std=float(level))
    results: dict[str, list[Path]] = {}
    for name, sources in arms.items():
        for number, source in enumerate(sources):
            subject = open_subject(source)
            out = folder / "scores" / cohort.name / level / f"{name}-{number}"
            evaluate(
                subject,
                TrainingImages.open(cohort, at_noise(subject.config, noise)),
                out=out,
                split=options.split,
                perceptual=perceptual,
                device=torch.device("cpu"),
            )
            results.setdefault(name, []).append(out)
    return Scores(results)
