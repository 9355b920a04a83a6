"""A release on disk: obfuscated pixels under pseudonyms, with the clean ones beside them where pairs were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from veilray.cohort.indexed import Indexed, gather_place
from veilray.cohort.pixels import PixelFile, PixelSet, Scale, open_pixels, parse_name
from veilray.cohort.records import COHORT_FILE, INDEX_FILE, RELEASE_FILE, ReleaseRecord, check_file, read_record
from veilray.cohort.table import read_table
from veilray.errors import CohortError
from veilray.images.radiograph import FloatImage
from veilray.obfuscation.config import NoiseConfig


@dataclass(frozen=True, kw_only=True)
class Release(Indexed):
    """A release, opened: its index in memory, its pixels mapped; `pixels` are the noisy ones."""

    record: ReleaseRecord
    """What `release.json` says."""
    clean_pixels: PixelSet | None

    @classmethod
    def open(cls, path: str | Path) -> Release:
        """Open the release in a folder. Checks everything but the pixels' digests, which `verify` reads.

        Raises CohortError where the folder is no release, or is damaged or altered.
        """
        folder = Path(path)
        if not (folder / RELEASE_FILE).is_file():
            hint = "it is a cohort" if (folder / COHORT_FILE).is_file() else "make one with: veilray obfuscate"
            raise CohortError(f"{folder} is not a release; {hint}")
        record = read_record(folder, RELEASE_FILE, ReleaseRecord)
        if INDEX_FILE not in record.files:
            raise CohortError(f"{folder / RELEASE_FILE} names no {INDEX_FILE}; ask for the release again")
        check_file(folder, INDEX_FILE, record.files[INDEX_FILE])
        noisy = PixelSet(_open_files(folder, record, "noisy-"))
        kinds = [("pixels", "row", noisy)]
        clean = None
        if record.pairs:
            clean = PixelSet(_open_files(folder, record, "clean-"))
            kinds.append(("clean_pixels", "clean_row", clean))
        table = read_table(folder / INDEX_FILE, kinds)
        return cls(path=folder, record=record, table=table, pixels=noisy, clean_pixels=clean, files=record.files)

    @property
    def digest(self) -> str:
        """SHA-256 over the released files and the noise's law, in hexadecimal."""
        return self.record.digest

    @property
    def noise(self) -> NoiseConfig:
        """The law of the noise; it was drawn once and for all."""
        noise = self.record.noise
        return NoiseConfig(mean=noise.mean, std=noise.std, clip=noise.clip, fresh=False)

    @property
    def pairs(self) -> bool:
        """Whether the clean images are there too."""
        return self.clean_pixels is not None

    def stds(self, rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        """Standard deviation of the noise of each row, (n,), float32."""
        if self.table.stds is not None:
            chosen: npt.NDArray[np.float32] = self.table.stds[rows]
            return chosen
        return np.full(len(rows), self.noise.std_range[0], dtype=np.float32)

    def gather_noisy(self, rows: npt.NDArray[np.integer[Any]], out: FloatImage | None = None) -> FloatImage:
        """Noisy images of the given rows: (n, H, W), float32; [0, 1] where the noise was clipped.

        Raises CohortError where the rows are not all of one size, lie outside the release, or do not fit `out`.
        """
        return gather_place(self.pixels, self.table, 0, rows, out)

    def gather_clean(self, rows: npt.NDArray[np.integer[Any]], out: FloatImage | None = None) -> FloatImage:
        """Clean images of the given rows: (n, H, W), float32, [0, 1]; CohortError where there are none."""
        if self.clean_pixels is None:
            raise CohortError(f"{self.path} holds no clean images; ask for a release made with --pairs")
        return gather_place(self.clean_pixels, self.table, 1, rows, out)


def _open_files(folder: Path, record: ReleaseRecord, kind: str) -> dict[str, PixelFile]:
    files = {}
    for name, file in record.files.items():
        if name.startswith(kind):
            files[name] = open_pixels(folder, name, n_bytes=file.size, scale=_scale(record, name))
    if not files:
        raise CohortError(f"{folder / RELEASE_FILE} names no {kind} pixels; ask for the release again")
    return files


def _scale(record: ReleaseRecord, name: str) -> Scale | None:
    if name.startswith("clean-"):
        return None
    dtype = parse_name(name)[2].name
    for depth, quantisation in record.quantisation.items():
        if depth == dtype:
            return Scale(offset=quantisation.offset, step=quantisation.step)
    raise CohortError(f"{RELEASE_FILE} does not say what the levels of {name} stand for; ask for the release again")
