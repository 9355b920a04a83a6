"""What Site One knows of every image of a cohort, as release making needs it. None of it leaves as it stands."""

from __future__ import annotations

from dataclasses import dataclass

from veilray.cohort.cohort import Cohort
from veilray.cohort.leaving import Box
from veilray.cohort.obfuscate import released_dtype, released_shape
from veilray.cohort.records import INDEX_FILE
from veilray.cohort.table import iterate_index
from veilray.errors import CohortError
from veilray.exchange.release.deidentify import Facts
from veilray.obfuscation.config import NoiseConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """One image of a cohort."""

    row: int
    image_id: str
    patient_id: str
    """As the cohort names the patient: `ID^^^ISSUER`, the id alone, or the image id where the patient is unknown."""
    source: str
    size: tuple[int, int]
    """Height and width of the native pixels."""
    kept_size: tuple[int, int]
    """Height and width of the cohort's pixels, which are the released ones."""
    digest: bytes
    """SHA-256 over the native decoded pixels and their shape."""
    sop_uid: str
    burned_in: str
    """YES, NO, or empty, which means unknown."""
    view: str
    sex: str
    age: float | None
    date: str
    study_uid: str
    """Study Instance UID; empty where it is unknown."""
    spacing: tuple[float, float] | None
    """Of the native pixels, in mm."""

    @property
    def label(self) -> str:
        """How messages name it: its id may hold the patient's."""
        return f"line {self.row + 2} of the cohort's {INDEX_FILE}"

    @property
    def name(self) -> tuple[str, str] | None:
        """Patient and image, for the ledger to know it again by where it has no UID; None where no patient is known."""
        return None if self.sop_uid or self.patient_id == self.image_id else (self.patient_id, self.image_id)

    def facts(self, *, matrix: str, study: str = "") -> Facts:
        """What bears on de-identification; `study` is the pseudonym of its study."""
        spacing = None
        if self.spacing is not None:
            # Of the released pixels: resampling spreads the native ones over fewer or more.
            row, column = (
                mm * native / kept for mm, native, kept in zip(self.spacing, self.size, self.kept_size, strict=True)
            )
            spacing = row, column
        return Facts(
            patient=self.patient_id,
            matrix=matrix,
            view=self.view,
            spacing=spacing,
            sex=self.sex,
            age=self.age,
            date=self.date,
            study=study,
        )

    def geometry(self, *, resampling: str, blank: tuple[Box, ...] = ()) -> str:
        """All that was done to the native pixels before the noise."""
        done = ["native" if self.size == self.kept_size else f"{self.kept_size[0]}x{self.kept_size[1]} {resampling}"]
        done += [f"blank {box.left},{box.top},{box.width},{box.height}" for box in sorted(blank)]
        return "; ".join(done)


def read_originals(cohort: Cohort) -> list[Original]:
    """Every image of a cohort, by row; cohorts of the first schema say the view alone. CohortError if damaged."""
    path = cohort.path / INDEX_FILE
    try:
        return [_original(cohort, row, line) for row, line in enumerate(iterate_index(path))]
    except (KeyError, ValueError) as error:
        raise CohortError(f"{path} is damaged ({error}); import the radiographs again") from None


def released_matrix(cohort: Cohort, row: int, noise: NoiseConfig) -> str:
    """Size and depth of an image's released pixels, in words."""
    height, width = released_shape(cohort, row)
    return f"{height}x{width} {released_dtype(cohort, row, noise).name}"


def _original(cohort: Cohort, row: int, line: dict[str, str]) -> Original:
    spacing = line.get("spacing_row"), line.get("spacing_column")
    return Original(
        row=row,
        image_id=line["image_id"],
        patient_id=line["patient_id"],
        source=line["source"],
        size=(int(line["height"]), int(line["width"])),
        kept_size=released_shape(cohort, row),
        digest=bytes.fromhex(line["sha256"]),
        sop_uid=line.get("sop_instance_uid", "") or (line["image_id"] if line["format"] == "dicom" else ""),
        burned_in=line.get("burned_in", ""),
        view=line["view"],
        sex=line.get("sex", ""),
        age=float(line["age"]) if line.get("age") else None,
        date=line.get("date", ""),
        study_uid=line.get("study_uid", ""),
        spacing=(float(spacing[0]), float(spacing[1])) if spacing[0] and spacing[1] else None,
    )
