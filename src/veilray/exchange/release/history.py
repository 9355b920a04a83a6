"""What left of the images of a cohort, as the ledger remembers it: the answer to whoever asks where an image went."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from veilray.cohort.cohort import Cohort
from veilray.exchange.ledger.ledger import Ledger
from veilray.exchange.ledger.likeness import likeness
from veilray.exchange.ledger.records import Exposure, Image
from veilray.exchange.release.originals import Original, read_originals


def left_of(cohort: Cohort, rows: Iterable[int], *, ledger: Ledger) -> list[tuple[Original, Exposure]]:
    """Each of these rows of a cohort with all that has left of it: also under another UID, size or file format.

    Found by UID or name, by pixels and by likeness, as `Ledger` does; CohortError where the cohort's index is damaged.
    """
    known = read_originals(cohort)
    chosen = [known[row] for row in rows]
    images = [
        Image(
            sop_uid=original.sop_uid,
            name=original.name,
            digest=original.digest,
            likeness=likeness(cohort.gather(np.array([original.row]))[0]),
            geometry="",
            std=1.0,
        )
        for original in chosen
    ]
    return list(zip(chosen, ledger.exposures(images), strict=True))
