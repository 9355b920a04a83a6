"""Images beside those that a training is about: clean public ones, or a second noisy release of the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from veilray.cohort.cohort import Cohort
from veilray.cohort.open import open_data
from veilray.cohort.release import Release
from veilray.errors import CohortError, UsageError
from veilray.images.radiograph import FloatImage
from veilray.training.config import RunConfig, SplitConfig
from veilray.training.sets import Rows

Gather = Callable[[Rows], FloatImage]

SAMPLE = 4
"""Images of two releases whose noise is held against each other."""


def matching_rows(first: Release, second: Release) -> Rows:
    """For each row of the first release the row of the same image in the second, (N,).

    Raises UsageError where their noise is not independent, or one is clamped and the other not; CohortError where they
    are not of the same images.
    """
    if first.noise.clip != second.noise.clip:
        raise UsageError(f"one of {first.path} and {second.path} is clamped and the other is not")
    if (first.noise.mean, first.noise.std) != (second.noise.mean, second.noise.std):
        raise UsageError(
            f"{first.path} and {second.path} differ in the noise's mean or std: 'noise2noise' compares an estimate "
            "with the second image as if its noise were of the first's law"
        )
    std = first.noise.std
    if isinstance(std, tuple):
        raise UsageError(f"{first.path} has another std for each image; 'noise2noise' needs one std for both releases")
    if first.record.release_id == second.record.release_id or first.digest == second.digest:
        raise UsageError(f"{first.path} and {second.path} are the same release: 'noise2noise' needs a second draw")
    rows = {name: row for row, name in enumerate(second.image_ids)}
    missing = [name for name in first.image_ids if name not in rows]
    if missing:
        raise CohortError(
            f"{len(missing)} of {len(first)} images of {first.path} are not in {second.path} by name: releases for "
            "'noise2noise' are made with --keys for one receiver, so that names last, and another noise key for the "
            "second (veilray keys rotate KEYS noise)"
        )
    matched = np.array([rows[name] for name in first.image_ids], dtype=np.int64)
    for row, other in enumerate(matched):
        if first.size(row) != second.size(int(other)):
            raise CohortError(f"image {first.image_id(row)} has another size in {second.path} than in {first.path}")
    _check_own_draws(first, second, matched, std=std)
    return matched


def _check_own_draws(first: Release, second: Release, matched: Rows, *, std: float) -> None:
    """UsageError where images differ by far less than two draws of the noise do: both were made with one seed."""
    differences = []
    for row in range(min(len(matched), SAMPLE)):
        own, other = (
            data.gather_noisy(np.array([place]))[0] for data, place in ((first, row), (second, int(matched[row])))
        )
        inside = (own > 0) & (own < 1) & (other > 0) & (other < 1)
        differences.append(float((own - other)[inside].std()) if inside.any() else np.inf)
    # Where both lie between black and white their noise is narrower than std, but not by half.
    if np.median(differences) < 0.5 * std:
        raise UsageError(
            f"{first.path} and {second.path} have the same noise, or nearly: 'noise2noise' needs a draw of its own for "
            "each; a site's keys give another after veilray keys rotate KEYS noise"
        )


def open_companions(*, clean: Path | None, second: Path | None) -> tuple[Cohort | None, Release | None]:
    """The clean public images and the second release at these paths. UsageError where one is of another kind."""
    public = None if clean is None else open_data(clean)
    other = None if second is None else open_data(second)
    if isinstance(public, Release):
        raise UsageError(f"--clean {clean}: clean public images are a cohort, and this is a release")
    if isinstance(other, Cohort):
        raise UsageError(f"--second {second}: this is a cohort, and 'noise2noise' needs a second release")
    return public, other


def with_companions(config: RunConfig, *, clean: Cohort | None, second: Release | None) -> RunConfig:
    """The configuration with the digests of what stands beside the data.

    Raises UsageError where it does not go with the objective, or a run was begun with other companions.
    """
    train = config.train
    if clean is not None and second is not None:
        raise UsageError("--clean and --second exclude each other: 'noise2noise' takes no clean images beside it")
    if clean is not None and train.objective == "supervised":
        raise UsageError("--clean goes with an objective that sees no clean image; these data hold clean ones")
    if clean is not None and train.batch_size < 2:
        raise UsageError("--clean needs train.batch_size of 2 or more: each batch holds both kinds")
    update = {}
    for option, name, data in (("--clean", "clean_digest", clean), ("--second", "second_digest", second)):
        digest, before = "" if data is None else data.digest, getattr(train, name)
        if before and before != digest:
            raise UsageError(f"the run was begun with {option} of digest {before[:12]}...: give the same again")
        update[name] = digest
    return config.model_copy(update={"train": train.model_copy(update=update)})


def public_config(config: RunConfig) -> RunConfig:
    """How clean public images are trained on beside others: with noise of the same law, drawn anew every pass."""
    train = config.train.model_copy(
        update={"objective": "supervised", "clean_digest": "", "recorruption": 0.0, "recorruptions": 0}
    )
    noise = config.noise.model_copy(update={"fresh": True})
    return config.model_copy(update={"train": train, "noise": noise, "split": SplitConfig()})


def second_gather(data: Cohort | Release, second: Release) -> Gather:
    """From rows of a release to noisy images of a second one. Raises as `matching_rows`, UsageError for a cohort."""
    if not isinstance(data, Release):
        raise UsageError(f"--second goes with a release, and {data.path} is a cohort, which holds the clean images")
    matched = matching_rows(data, second)
    return lambda rows: second.gather_noisy(matched[rows])
