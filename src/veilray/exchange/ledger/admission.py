"""What the ledger says of what it does not let go, and whether what is to be sealed is, or is of, what it let go."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from veilray.exchange.ledger.records import Objection, ReleaseLine


def sealing_objection(
    line: ReleaseLine | None,
    *,
    digest: str,
    receivers: Mapping[str, Collection[str]],
    images: int = 0,
    subtractable: bool = False,
) -> str | None:
    """Why a release with the digest, or so many images of it, may not be sealed; None where nothing speaks against it.

    `line` is what the ledger knows of its id; `receivers` gives each one's fingerprints, former ones too, by its name;
    `subtractable` says that noisy images leave whose noise can be made again.
    """
    if line is None:
        return "the ledger does not know it: it was made without --keys, or with those of another site"
    if line.status != "committed":
        return f"the ledger has it as {line.status}, not as released; see `veilray ledger settle`"
    if not line.digest:
        return "the ledger does not know its content: it was settled without its folder, or made by an older version"
    if line.digest != digest:
        return "it is not the one that was made under its id: it was altered since"
    if images > line.images:
        return f"{images:,} images cannot be of it, which has {line.images:,}"
    others = sorted(name for name, known in receivers.items() if not set(known) & set(line.release.receivers))
    if others:
        return f"it was not made for {', '.join(others)}; make a release for each receiver, whose pseudonyms differ"
    if subtractable:
        return "its noise was made from a seed: whoever learns or guesses the seed can subtract it"
    return None


def refusal(objections: Sequence[Objection], images: int) -> str:
    """Why a release of so many images is refused: what is held against the first, and the ways out."""
    first = objections[0]
    return (
        f"the ledger refuses {len(objections):,} of {images:,} images; {first.label}: {first.reason}. "
        "Leave them out (--leave-out-refused), or override (--override-name, --override-reason; both are kept)"
    )
