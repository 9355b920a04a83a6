"""Evaluate a run: score its network and its noisy input on every image of a set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veilray.cohort.cohort import Cohort
from veilray.errors import CohortError, DataError, RunError
from veilray.evaluation.results import METRICS, MODEL, NOISY, ImageScore, Summary, write_results
from veilray.files import sha256_file
from veilray.inference.denoiser import Denoiser
from veilray.metrics.interval import Interval
from veilray.metrics.lpips import LPIPS
from veilray.metrics.psnr import psnr
from veilray.metrics.ssim import ssim
from veilray.metrics.statistics import clustered_bootstrap
from veilray.parallel.devices import describe_device
from veilray.parallel.group import ALONE, Group, fails_together
from veilray.parallel.sharding import merged
from veilray.training.config import RunConfig
from veilray.training.data import Batch, Rows, TrainingImages
from veilray.training.run import RunFolder

CONFIDENCE = 0.95
RESAMPLES = 2000
BOOTSTRAP_SEED = 0
BATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class Perceptual:
    """LPIPS, or why it is not computed."""

    network: LPIPS | None
    note: str = ""


def evaluate_run(
    run: RunFolder,
    images: TrainingImages,
    *,
    split: str = "test",
    perceptual: Perceptual,
    device: torch.device,
    on_images: Callable[[int], None] = lambda count: None,
    group: Group = ALONE,
) -> Summary:
    """Score a run on every image of a set and write `evaluation/` in its folder.

    Noise is that of the configuration, drawn on the CPU from the test noise seed, the same for every run. Of a `group`
    each rank scores every world_size-th batch, which gives the scores that one process gives, and the lead writes.
    Raises CohortError where the data are not those the run was trained on, or the set is empty, and RunError where
    ranks hold other weights than the lead.
    """
    with fails_together(group):
        check_digest(run, images)
        if not len(images.sets[split]):
            raise CohortError(f"{images.data.path} has no images in its {split} set")
        denoiser = Denoiser.load(run.path, device=device.type)
    _check_weights(run, group)
    own: list[tuple[int, list[dict[str, Any]]]] = []
    seconds = 0.0
    with fails_together(group):
        for number, rows in enumerate(_batches(images, split)):
            if number % group.world_size != group.rank:
                continue
            # The same batches as one process makes: an image's output may hang, in its last bits, on its neighbours.
            batch = images.held_out_batch(rows, device)
            started = time.perf_counter()
            output = denoiser.denoise(batch.noisy, mean=batch.known[:, 0], std=batch.known[:, 1])
            _wait_for(device)
            seconds += time.perf_counter() - started
            scores = []
            for method, estimate in ((NOISY, batch.noisy), (MODEL, output)):
                scores += _score(method, estimate, batch, images, perceptual.network, run.config())
            own.append((number, [asdict(score) for score in scores]))
            on_images(len(rows))
    everyone = [ImageScore(**score) for scored in merged(own, group) for score in scored]
    seconds, summary = sum(group.gather(seconds)), None
    with fails_together(group):
        if group.is_lead:
            summary = _summarise(everyone, images, run.config(), split, device, seconds=seconds, note=perceptual.note)
            write_results(run.path, summary, everyone)
    return Summary.model_validate(group.broadcast(summary and summary.model_dump(mode="json")))


def _batches(images: TrainingImages, split: str) -> Iterator[Rows]:
    """Rows of a set, size by size, in batches."""
    for rows in images.data.groups(images.sets[split]):
        for start in range(0, len(rows), BATCH_SIZE):
            yield rows[start : start + BATCH_SIZE]


def _check_weights(run: RunFolder, group: Group) -> None:
    if not group.joined:
        return
    digests = group.gather(sha256_file(run.best_weights))
    with fails_together(group):
        for rank, digest in enumerate(digests):
            if digest != digests[0]:
                raise RunError(f"rank {rank} finds other weights in {run.path} than rank 0: give all the same run")


def check_digest(run: RunFolder, images: TrainingImages) -> None:
    """Raise CohortError unless the data are the very ones that the run was trained on."""
    expected = run.environment().get("cohort_digest")
    if expected != images.data.digest:
        raise CohortError(
            f"{run.path} was trained on data with digest {str(expected)[:12]}, but {images.data.path} has "
            f"{images.data.digest[:12]}: its test images may have been trained on; give the original cohort"
        )


def _score(
    method: str, estimate: Tensor, batch: Batch, images: TrainingImages, lpips: LPIPS | None, config: RunConfig
) -> list[ImageScore]:
    """Scores of (N, 1, H, W) estimates; all metrics see the clamped estimate, but for the paper's unclamped PSNR."""
    clamped, clean = estimate.clamp(0.0, 1.0), batch.clean
    columns = {
        "psnr": psnr(clamped, clean, data_range=1.0),
        "ssim": ssim(clamped, clean, data_range=1.0),
        "ssim_3x3": ssim(clamped, clean, data_range=1.0, window=3),
        "lpips": lpips(clamped, clean) if lpips is not None else None,
        "psnr_unclamped": psnr(estimate, clean, data_range=1.0) if config.evaluate.unclamped_psnr else None,
    }
    values: dict[str, list[Any]] = {
        name: [None] * len(batch.rows) if column is None else column.tolist() for name, column in columns.items()
    }
    return [
        ImageScore(
            image_id=images.image_id(int(row)),
            patient_id=images.data.patient_id(int(row)),
            method=method,
            **{name: column[index] for name, column in values.items()},
        )
        for index, row in enumerate(batch.rows)
    ]


def _summarise(
    scores: list[ImageScore],
    images: TrainingImages,
    config: RunConfig,
    split: str,
    device: torch.device,
    *,
    seconds: float,
    note: str,
) -> Summary:
    own = [score for score in scores if score.method == MODEL]
    means = {method: _means([score for score in scores if score.method == method]) for method in (NOISY, MODEL)}
    return Summary(
        split=split,
        n_images=len(own),
        n_patients=len({score.patient_id for score in own}),
        cohort=str(images.data.path),
        cohort_digest=images.data.digest,
        noise=images.noise,
        test_noise_seed=config.evaluate.noise_seed if isinstance(images.data, Cohort) else None,
        confidence=CONFIDENCE,
        resamples=RESAMPLES,
        bootstrap_seed=BOOTSTRAP_SEED,
        methods={method: values for method, (values, _) in means.items()},
        notes=[*filter(None, [note]), *(reason for _, reasons in means.values() for reason in reasons)],
        seconds_per_image={MODEL: seconds / len(own)},
        device=describe_device(device),
    )


def _means(scores: list[ImageScore]) -> tuple[dict[str, Interval | None], list[str]]:
    """Each metric's mean with its interval, and why there is none where there is none."""
    patients = [score.patient_id for score in scores]
    means: dict[str, Interval | None] = {}
    notes = []
    for metric in METRICS:
        values = [getattr(score, metric) for score in scores]
        means[metric] = None
        if None not in values:
            try:
                means[metric] = clustered_bootstrap(
                    np.array(values), patients, resamples=RESAMPLES, seed=BOOTSTRAP_SEED, confidence=CONFIDENCE
                )
            except DataError as error:  # one patient alone, or an infinite PSNR: the images' scores still stand
                notes.append(f"No mean of {metric} for {scores[0].method}: {error}.")
    return means, notes


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
