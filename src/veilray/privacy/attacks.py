"""The attacks that an audit runs, with what each may take of its time."""

from __future__ import annotations

import functools
from pathlib import Path

from veilray.files import sha256_file
from veilray.privacy import linkage, reconstruction
from veilray.privacy.attributes import AttributeInference
from veilray.privacy.data import Effort, NamedAttack, VariantKind
from veilray.privacy.observing import Observer
from veilray.privacy.reconstruction import Perceptual
from veilray.privacy.reidentification import ReIdentification

_EVERY: frozenset[VariantKind] = frozenset({"clean", "noisy", "denoised", "baseline"})


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
