"""The attacks that an audit runs."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from veilray.cohort.cohort import Cohort
from veilray.cohort.release import Release
from veilray.errors import RunError
from veilray.files import sha256_file
from veilray.privacy import linkage, reconstruction
from veilray.privacy.attributes import AttributeInference
from veilray.privacy.catalogue import ATTRIBUTES, LINKAGE, MEMBERSHIP, RECONSTRUCTION, REIDENTIFICATION
from veilray.privacy.data import AuditData, NamedAttack, Progress, Variant, VariantKind
from veilray.privacy.extent import Extent
from veilray.privacy.observing import Observer
from veilray.privacy.reconstruction import Perceptual
from veilray.privacy.reidentification import ReIdentification
from veilray.privacy.results import AttackResult, Skipped

_EVERY: frozenset[VariantKind] = frozenset({"clean", "noisy", "denoised", "baseline"})


def attacks(*, extent: Extent, backbone: Path | None, perceptual: Perceptual | None) -> list[NamedAttack]:
    """Linkage, reconstruction, re-identification and attribute inference.

    `backbone`: a file of AlexNet's convolutions, through which the learned attackers look where it is given;
    `perceptual`: LPIPS, where it is at hand. Where denoised images are few, they are only linked and scored.
    """
    observer = Observer(backbone)
    eyes = sha256_file(backbone) if backbone is not None else "no AlexNet"
    learned = _EVERY if extent.learns_denoised else _EVERY - {"denoised"}
    reconstruct = functools.partial(reconstruction.run, perceptual=perceptual)
    scored, lacks = _weights_of(perceptual), observer.weakened
    return [
        NamedAttack(name=LINKAGE, run=linkage.run, kinds=_EVERY),
        NamedAttack(name=RECONSTRUCTION, run=reconstruct, kinds=_EVERY, inputs=scored),
        NamedAttack(name=REIDENTIFICATION, run=ReIdentification(observer), kinds=learned, inputs=eyes, weakened=lacks),
        NamedAttack(name=ATTRIBUTES, run=AttributeInference(observer), kinds=learned, inputs=eyes, weakened=lacks),
    ]


def _weights_of(perceptual: Perceptual | None) -> str:
    """A digest of LPIPS' weights, heads and convolutions."""
    if not isinstance(perceptual, nn.Module):
        return "no LPIPS" if perceptual is None else "an LPIPS without weights"
    digest = hashlib.sha256()
    for name, tensor in sorted(perceptual.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def membership_attack(run: Path, cohort: Path, *, folder: Path, releases: Sequence[Path] = ()) -> NamedAttack:
    """Whether a run's weights tell which patients of a cohort it was trained on.

    It trains shadow models where the extent says so.

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
        data: AuditData, variant: Variant, *, extent: Extent, seeds: Sequence[int], progress: Progress
    ) -> list[AttackResult | Skipped]:
        from veilray.privacy.released_model import attack_run

        return attack_run(
            run,
            cohort,
            release=release,
            seeds=seeds,
            progress=progress,
            folder=folder,
            shadows=extent.shadows,
            most=extent.asked,
        )

    inputs = sha256_file(trained.best_weights)
    return NamedAttack(name=MEMBERSHIP, run=attack, kinds=frozenset({"clean"}), inputs=inputs)
