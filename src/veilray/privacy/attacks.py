"""The attacks that an audit runs, with what each may take of its time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from veilray.cohort.cohort import Cohort
from veilray.cohort.release import Release
from veilray.errors import RunError
from veilray.files import sha256_file
from veilray.privacy import linkage, reconstruction
from veilray.privacy.attributes import AttributeInference
from veilray.privacy.data import AuditData, Budget, Effort, NamedAttack, Progress, Variant, VariantKind
from veilray.privacy.membership import ATTACK as MEMBERSHIP
from veilray.privacy.observing import Observer
from veilray.privacy.reconstruction import Perceptual
from veilray.privacy.reidentification import ReIdentification
from veilray.privacy.results import AttackResult, Skipped

_EVERY: frozenset[VariantKind] = frozenset({"clean", "noisy", "denoised", "baseline"})


SHADOWS: dict[Effort, int] = {"quick": 0, "default": 0, "full": 16}
"""Shadow models that the likelihood ratio attack trains; none where it is not run."""

_ASKED: dict[Effort, int | None] = {"quick": 30, "default": 150, "full": None}
"""Members, and others, that membership inference asks about."""


def attacks(*, effort: Effort, backbone: Path | None, perceptual: Perceptual | None) -> list[NamedAttack]:
    """Linkage, reconstruction, re-identification and attribute inference.

    `backbone`: a file of AlexNet's convolutions, through which the learned attackers look where it is given;
    `perceptual`: LPIPS, where it is at hand. Under `quick` denoised images are few, and only linked and scored.
    """
    observer = Observer(backbone)
    eyes = sha256_file(backbone) if backbone is not None else "no AlexNet"
    learned = _EVERY - {"denoised"} if effort == "quick" else _EVERY
    reconstruct = functools.partial(reconstruction.run, perceptual=perceptual)
    scored = "LPIPS" if perceptual is not None else "no LPIPS"
    return [
        NamedAttack(name=linkage.NAME, run=linkage.run, share=0.1, kinds=_EVERY),
        NamedAttack(name=reconstruction.NAME, run=reconstruct, share=0.2, kinds=_EVERY, inputs=scored),
        NamedAttack(
            name="re-identification", run=ReIdentification(observer=observer), share=0.5, kinds=learned, inputs=eyes
        ),
        NamedAttack(
            name="attribute inference", run=AttributeInference(observer=observer), share=0.2, kinds=learned, inputs=eyes
        ),
    ]


def membership_attack(
    run: Path, cohort: Path, *, effort: Effort, folder: Path, releases: Sequence[Path] = ()
) -> NamedAttack:
    """Whether a run's weights tell which patients of a cohort it was trained on; trains as many networks as SHADOWS.

    The run may have been trained on one of the `releases` of the cohort. What each of those networks told of the
    patients is kept in `folder`, so that an attack that was stopped goes on. It goes with the originals. Raises
    RunError where `run` is no run folder or was trained on anything else.
    """
    from veilray.training.run import RunFolder

    trained = RunFolder(run)
    trained_on = str(trained.environment().get("cohort_digest", ""))
    known: dict[str, Path | None] = {Release.open(release).digest: release for release in releases}
    known[Cohort.open(cohort).digest] = None
    if trained_on not in known:
        raise RunError(
            f"{run} was not trained on {cohort} nor on a release that is attacked here, so nobody of it can be among "
            "its training patients"
        )
    release = known[trained_on]

    def attack(
        data: AuditData, variants: Sequence[Variant], *, budget: Budget, seeds: Sequence[int], progress: Progress
    ) -> list[AttackResult | Skipped]:
        from veilray.privacy.released_model import attack_run

        return attack_run(
            run,
            cohort,
            release=release,
            seed=seeds[0],
            progress=progress,
            folder=folder,
            shadows=SHADOWS[effort],
            most=_ASKED[effort],
        )

    inputs = sha256_file(trained.best_weights)
    return NamedAttack(name=MEMBERSHIP, run=attack, share=0.5, kinds=frozenset({"clean"}), inputs=inputs)
