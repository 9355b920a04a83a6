"""What an attack is given: the originals, whose they are, and the variants of them that it attacks.

An attack is a function

    run(data, variant, *, extent, seeds, progress) -> list[AttackResult | Skipped]

It runs what it can and returns a `Skipped` with the reason for what it cannot. It is called for one variant at a time,
so that what is finished need not be run again; what no image decides goes with the variant of kind `clean`. Attacks
draw from generators of their own, seeded from `seeds`, and never from a global one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from veilray.images.radiograph import FloatImage
from veilray.privacy.extent import Extent
from veilray.privacy.results import AttackResult, Skipped

Rows = npt.NDArray[np.integer[Any]]
"""(n,): places in the audit's images, from 0 to N - 1."""

VariantKind = Literal["clean", "noisy", "denoised", "baseline"]
"""The originals; as they leave; what a denoiser makes of that; another obfuscation, for scale."""

Progress = Callable[[str], None]
"""Called with what an attack is at, in a few words: `seed 1 of 3, fold 2 of 5`."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is known of each of the N images beside its pixels; None where it is not known."""

    sex: tuple[str | None, ...]
    """`M`, `F` or `O`."""
    age: tuple[float | None, ...]
    """In years."""
    view: tuple[str | None, ...]
    """`PA`, `AP`, ..., as in View Position (0018,5101)."""

    def counts(self) -> dict[str, int]:
        """Of how many images each is known: `sex`, `view` and `age`."""
        columns: dict[str, Sequence[object]] = {"sex": self.sex, "view": self.view, "age": self.age}
        return {name: sum(value is not None for value in column) for name, column in columns.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditData:
    """The originals of an audit: N images of one size."""

    clean: Callable[[Rows], FloatImage]
    """Rows -> (n, H, W), float32, [0, 1]; read when asked for."""
    patient_ids: tuple[str, ...]
    """(N,): whose each image is."""
    image_ids: tuple[str, ...]
    """(N,): names, for messages at Site One only; never in results."""
    labels: Labels
    size: tuple[int, int]
    """Height and width."""
    digest: str
    """Names these images, these patients and these labels."""
    sets: tuple[str, ...] = ()
    """(N,): `train`, `validation` or `test`, by the cohort's split; empty where there is none."""

    def __len__(self) -> int:
        return len(self.patient_ids)

    @property
    def n_patients(self) -> int:
        """How many different patients there are."""
        return len(set(self.patient_ids))


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """One way in which the images of an audit may be met: what an attacker sees."""

    name: str
    """In a reader's words, such as `noise 0.2` or `noise 0.2, denoised`; its name in every result."""
    kind: VariantKind
    draw: Callable[[Rows, int], FloatImage]
    """Rows and the number of a draw -> (n, H, W), float32; the same for the same arguments.

    Draws are independent as far as there are `draws` of them; their number is taken modulo `draws`.
    """
    digest: str
    """Names what decides the images: the noise, the release, the weights."""
    draws: int | None = None
    """How many independent draws there are: 1 of a release, which exists once; None for any number."""
    mean: float = 0.0
    """Of the noise; 0 where there is none."""
    std: float = 0.0
    """Of the noise; 0 where there is none."""
    clip: bool = True
    mixed: bool = False
    """Whether `std` is the least of several levels, one drawn for each image."""
    rows: tuple[int, ...] | None = None
    """The rows that it has images of, where some are missing from a release; None for all."""
    source: str = ""
    """Name of the variant that it was restored from; empty where it was not restored."""
    restorer: str = ""
    """Who restored it; empty where it was not restored."""
    judged: tuple[int, ...] | None = None
    """The rows whose fidelity counts, where networks were trained on the others; None for all."""
    prepare: Callable[[Progress], None] | None = None
    """What takes long before its first image is there, such as a training; may be called again and is then quick."""

    def available(self, data: AuditData) -> npt.NDArray[np.int64]:
        """The rows of `data` that it has images of, (n,), ascending."""
        return np.arange(len(data)) if self.rows is None else np.array(self.rows, dtype=np.int64)

    @property
    def is_noise(self) -> bool:
        """Whether its images are the originals under Gaussian noise of a known law."""
        return self.std > 0.0


class Attack(Protocol):
    """One family of attacks."""

    def __call__(
        self,
        data: AuditData,
        variant: Variant,
        *,
        extent: Extent,
        seeds: Sequence[int],
        progress: Progress,
    ) -> list[AttackResult | Skipped]:
        """Attack a variant; see the top of this file."""


MIXED = "the attacker takes the least of the release's levels for that of every image, and may do better"


def drawn_numbers(variant: Variant, seeds: Sequence[int]) -> range:
    """The draws of a variant that an attack looks at: one a seed, as far as it has so many."""
    return range(len(seeds) if variant.draws is None else min(variant.draws, len(seeds)))


def drawn_seeds(variant: Variant, seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds that a figure of its draws says it is averaged over: none where nothing is drawn for the audit."""
    return tuple(seeds) if variant.draws is None else ()


def drawn_words(variant: Variant, numbers: range) -> tuple[str, ...]:
    """What a figure says of the draws that it is averaged over; nothing where nothing was drawn."""
    if variant.kind == "clean" or not (variant.draws is None or variant.is_noise or variant.source):
        return ()
    drawn = "one draw of the noise" if len(numbers) == 1 else f"{len(numbers)} draws of the noise"
    return (drawn, MIXED) if variant.mixed else (drawn,)


def no_labels(count: int) -> Labels:
    """Labels of `count` images of which nothing is known."""
    unknown = (None,) * count
    return Labels(sex=unknown, age=unknown, view=unknown)


@dataclass(frozen=True, kw_only=True)
class NamedAttack:
    """An attack as the audit runs it."""

    name: str
    """Also the name of the file of its results."""
    run: Attack
    kinds: frozenset[VariantKind] = field(default_factory=lambda: frozenset({"clean", "noisy", "denoised"}))
    """Which variants it attacks."""
    inputs: str = ""
    """What else decides its results, such as a digest of weights."""
    weakened: str = ""
    """What its strongest attacker lacks that it might have had; empty where nothing."""
