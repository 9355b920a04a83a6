"""Whether what is about to be sealed is, or is of, a release that the ledger let go, and for these receivers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from veilray.exchange.ledger.records import ReleaseLine


def sealing_objection(
    line: ReleaseLine | None, *, digest: str, receivers: Mapping[str, Collection[str]], images: int = 0
) -> str | None:
    """Why a release with the digest, or so many images of it, may not be sealed; None where nothing speaks against it.

    `line` is what the ledger knows of its id; `receivers` gives each one's fingerprints, former ones too, by its name.
    """
    if line is None:
        return "the ledger does not know it: it was made without --keys, or with those of another site"
    if line.status != "committed":
        return f"the ledger has it as {line.status}, not as released; see `veilray ledger settle`"
    if line.digest and line.digest != digest:
        return "it is not the one that was made under its id: it was altered since"
    if images > line.images:
        return f"{images:,} images cannot be of it, which has {line.images:,}"
    others = sorted(name for name, known in receivers.items() if not set(known) & set(line.release.receivers))
    if others:
        return f"it was not made for {', '.join(others)}; make a release for each receiver, whose pseudonyms differ"
    return None
