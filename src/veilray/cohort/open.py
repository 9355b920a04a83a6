"""Open whatever can be trained on."""

from __future__ import annotations

from pathlib import Path

from veilray.cohort.cohort import Cohort
from veilray.cohort.records import COHORT_FILE, RELEASE_FILE
from veilray.cohort.release import Release
from veilray.errors import CohortError


def open_data(path: str | Path) -> Cohort | Release:
    """The cohort or the release in a folder; CohortError where it is neither, or damaged."""
    folder = Path(path)
    if (folder / RELEASE_FILE).is_file():
        return Release.open(folder)
    if (folder / COHORT_FILE).is_file():
        return Cohort.open(folder)
    raise CohortError(f"{folder} is neither a cohort nor a release; make one with: veilray import")
