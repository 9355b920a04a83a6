"""Evaluate a network: score it, its noisy input and classical methods on every image of a set."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from veilray.cohort.cohort import Cohort
from veilray.cohort.release import Release
from veilray.errors import CohortError, UsageError
from veilray.evaluation.baselines.score import Classical, ClassicalScores, score_classical
from veilray.evaluation.levels import noise_note
from veilray.evaluation.restoring import restored
from veilray.evaluation.results import MODEL, NOISY, ImageScore, Summary, write_results
from veilray.evaluation.scoring import (
    BOOTSTRAP_SEED,
    CONFIDENCE,
    RESAMPLES,
    Perceptual,
    differences,
    means,
    perceptual_for,
    score_images,
)
from veilray.evaluation.subject import Subject, check_data, name_from, open_subject
from veilray.evaluation.watching import Show, show_nothing
from veilray.inference.agreement import check_same_weights
from veilray.inference.denoiser import Denoiser
from veilray.parallel.devices import describe_device
from veilray.parallel.group import ALONE, Group, fails_together
from veilray.parallel.sharding import merged
from veilray.training.data import TrainingImages
from veilray.training.run import RunFolder
from veilray.training.sets import Rows

BATCH_SIZE = 8


@dataclass(kw_only=True)
class _Seconds:
    """What the network took."""

    wall: float = 0.0
    core: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What a summary says besides the scores."""

    subject: Subject
    out: Path
    split: str
    device: torch.device
    weights_sha256: str
    seconds: _Seconds
    notes: list[str] = field(default_factory=list)


def evaluate_run(
    run: RunFolder,
    images: TrainingImages,
    *,
    split: str = "test",
    perceptual: Perceptual,
    device: torch.device,
    show: Show = show_nothing,
    group: Group = ALONE,
) -> Summary:
    """Score a run's network on every image of a set and write `evaluation/` in its folder; see `evaluate`."""
    with fails_together(group):
        subject = open_subject(run.path)
    return evaluate(
        subject,
        images,
        out=run.path,
        split=split,
        perceptual=perceptual,
        device=device,
        show=show,
        group=group,
    )


def evaluate(
    subject: Subject,
    images: TrainingImages,
    *,
    out: Path,
    split: str = "test",
    perceptual: Perceptual,
    device: torch.device,
    classical: Classical | None = None,
    show: Show = show_nothing,
    group: Group = ALONE,
) -> Summary:
    """Score a network on every image of a set and write `evaluation/` in the folder `out`.

    Noise is that of `images`, drawn on the CPU from the test noise seed, the same for every network. Of a `group` each
    rank scores every world_size-th batch, which gives the scores that one process gives, and the lead writes. Raises
    CohortError where the data are not those the run was trained on, hold no clean images, or have an empty set,
    RunError where ranks hold other weights than the lead, and UsageError for classical methods in a group.
    """
    with fails_together(group):
        if classical is not None and group.joined:
            raise UsageError("classical methods are computed on all cores by one process: evaluate without torchrun")
        if not images.holds_clean:
            raise CohortError(
                f"{images.data.path} holds noisy images alone, and scores need the originals: name their cohort with "
                "--originals, or have the model scored where they are"
            )
        perceptual = perceptual_for(perceptual, images, images.sets[split])
        beyond = noise_note(subject.title, trained=subject.config.noise, scored=images.noise)
        notes = [note for note in (check_data(subject, images.data), beyond, perceptual.note) if note]
        if not len(images.sets[split]):
            raise CohortError(f"{images.data.path} has no images in its {split} set")
        denoiser = Denoiser.load(subject.source, device=device.type)
    check_same_weights(denoiser, group, source=str(subject.source))
    own: list[tuple[int, list[dict[str, Any]]]] = []
    seconds = _Seconds()
    with fails_together(group), show(f"evaluating on {split}", len(images.sets[split])) as advance:
        for number, rows in enumerate(_batches(images, split)):
            if number % group.world_size != group.rank:
                continue
            # The same batches as one process makes: an image's output may hang, in its last bits, on its neighbours.
            scores = _score(denoiser, images, rows, perceptual, device, seconds)
            own.append((number, [asdict(score) for score in scores]))
            advance(len(rows))
    everyone = [ImageScore(**score) for scored in merged(own, group) for score in scored]
    total = group.gather([seconds.wall, seconds.core])
    summary = None
    with fails_together(group):
        if group.is_lead:
            spent = _Seconds(wall=sum(one[0] for one in total), core=sum(one[1] for one in total))
            facts = _Facts(
                subject=subject,
                out=out,
                split=split,
                device=device,
                weights_sha256=_digest(denoiser),
                seconds=spent,
                notes=notes,
            )
            summary = _finish(everyone, images, facts, classical, perceptual, show)
    return Summary.model_validate(group.broadcast(summary and summary.model_dump(mode="json")))


def _batches(images: TrainingImages, split: str) -> Iterator[Rows]:
    """Rows of a set, size by size, in batches."""
    for rows in images.data.groups(images.sets[split]):
        for start in range(0, len(rows), BATCH_SIZE):
            yield rows[start : start + BATCH_SIZE]


def _digest(denoiser: Denoiser) -> str:
    assert denoiser.origin is not None  # it was loaded from a file
    return denoiser.origin.weights_sha256


def _score(
    denoiser: Denoiser,
    images: TrainingImages,
    rows: Rows,
    perceptual: Perceptual,
    device: torch.device,
    seconds: _Seconds,
) -> list[ImageScore]:
    """Scores of the noisy images and the network's output; adds to `seconds` what the network took."""
    batch = images.held_out_batch(rows, device)
    wall, core = time.perf_counter(), time.process_time()
    output = restored(denoiser, batch, images.noise)
    _wait_for(device)
    seconds.wall += time.perf_counter() - wall
    seconds.core += time.process_time() - core
    return [
        score
        for method, estimate in ((NOISY, batch.noisy), (MODEL, output))
        for score in score_images(method, estimate, batch.clean, rows, images, lpips=perceptual.network)
    ]


def _finish(
    scores: list[ImageScore],
    images: TrainingImages,
    facts: _Facts,
    classical: Classical | None,
    perceptual: Perceptual,
    show: Show,
) -> Summary:
    """Add the classical methods, and write the results."""
    others, baselines = None, None
    if classical is not None:
        rows = images.sets[facts.split]
        others = score_classical(classical, images, rows, lpips=perceptual.network, show=show)
        scores, baselines = [*scores, *others.scores], others.record(images)
    summary = _summarise(scores, images, facts, others)
    write_results(facts.out, summary, scores, baselines=baselines)
    return summary


def _summarise(
    scores: Sequence[ImageScore], images: TrainingImages, facts: _Facts, others: ClassicalScores | None
) -> Summary:
    by_method: dict[str, list[ImageScore]] = {}
    for score in scores:
        by_method.setdefault(score.method, []).append(score)
    own, found = by_method[MODEL], {method: means(mine) for method, mine in by_method.items()}
    on_cpu = {MODEL: facts.seconds.core / len(own)} if facts.device.type == "cpu" else {}
    return Summary(
        split=facts.split,
        n_images=len(own),
        n_patients=len({score.patient_id for score in own}),
        cohort=str(images.data.path),
        cohort_digest=images.data.digest,
        noise=images.noise,
        test_noise_seed=images.config.evaluate.noise_seed if isinstance(images.data, Cohort) else None,
        confidence=CONFIDENCE,
        resamples=RESAMPLES,
        bootstrap_seed=BOOTSTRAP_SEED,
        methods={method: values for method, (values, _) in found.items()},
        notes=[
            *facts.notes,
            *(others.notes() if others else []),
            *(reason for _, reasons in found.values() for reason in reasons),
        ],
        seconds_per_image={MODEL: facts.seconds.wall / len(own), **(others.seconds if others else {})},
        core_seconds_per_image={**on_cpu, **(others.core_seconds if others else {})},
        model_minus={name: differences(own, by_method[name]) for name in (others.tuned if others else {})},
        device=describe_device(facts.device),
        model=name_from(facts.out, facts.subject),
        weights_sha256=facts.weights_sha256,
        release_id=images.data.record.release_id if isinstance(images.data, Release) else None,
    )


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
