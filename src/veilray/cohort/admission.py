"""Which usable images come into a cohort, and into which set: decided one after the other, in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from veilray.cohort.lists import Listed
from veilray.cohort.prepare import Prepared
from veilray.cohort.split import SPLITS, Shares, Split, assign
from veilray.images.radiograph import Radiograph


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """An image that comes in."""

    radiograph: Radiograph
    """With what the user's table says of it."""
    patient_id: str
    split: Split


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """An image that stays out, though it could be used."""

    reason: str


@dataclass(kw_only=True)
class Admission:
    """Decides image by image. What it remembers grows by some hundred bytes an image."""

    shares: Shares
    seed: int
    listed: Mapping[str, Split] | None = None
    """Set by image id, where a file decides the split; images that it does not list stay out."""
    patients: Mapping[str, Listed] = field(default_factory=dict)
    """What the user's table says by image id, which goes before what the files say."""
    path_id: Callable[[str], str] = str
    """The image id that a source's path gives."""

    images: Counter[Split] = field(default_factory=Counter)
    patients_unknown: int = 0
    """Images that came in without a patient; each counts as a patient."""
    found_listed: int = 0
    """Images that `patients` lists, of all that were seen."""
    clashes: int = 0
    """Images left out because another one, with other pixels, has their id, which names by path would tell apart."""
    sets_of_patient: dict[str, int] = field(default_factory=dict)
    """By patient, one bit for each set in which the patient has images."""
    _source_of_id: dict[str, str] = field(default_factory=dict)
    _first_of_pixels: dict[bytes, tuple[str, Split]] = field(default_factory=dict)

    def decide(self, image: Prepared) -> Admitted | LeftOut:
        """Let an image in or leave it out, and remember it."""
        radiograph = image.radiograph
        name = radiograph.image_id
        if not name or not name.isprintable():
            return LeftOut(reason="its image id is empty or holds control characters; rename the file")
        if name in self._source_of_id:
            return LeftOut(reason=self._taken(image))
        listed = self.patients.get(name)
        if listed is not None:
            self.found_listed += 1
            radiograph = listed.over(radiograph)
        patient = radiograph.patient_id
        if patient is not None and not patient.isprintable():
            return LeftOut(reason="its patient id holds control characters; give another with --patients")
        split = self._split(name, patient or name)
        if split is None:
            return LeftOut(reason="the split file does not list it")
        pixels = bytes.fromhex(image.sha256)
        first, first_split = self._first_of_pixels.get(pixels, (radiograph.source, split))
        if first_split != split:
            return LeftOut(reason=f"its pixels are those of {first}, which is in {first_split}; it would be in {split}")
        self._first_of_pixels.setdefault(pixels, (first, split))
        self._source_of_id[name] = radiograph.source
        self.images[split] += 1
        self.patients_unknown += patient is None
        patient = patient or name
        self.sets_of_patient[patient] = self.sets_of_patient.get(patient, 0) | 1 << SPLITS.index(split)
        return Admitted(radiograph=radiograph, patient_id=patient, split=split)

    def absent(self) -> list[str]:
        """Images that the split file lists and that did not come in."""
        return [name for name in self.listed or {} if name not in self._source_of_id]

    def patients_in(self, split: Split) -> int:
        """Patients with images in a set."""
        bit = 1 << SPLITS.index(split)
        return sum(bool(sets & bit) for sets in self.sets_of_patient.values())

    def patients_across_sets(self) -> list[str]:
        """Patients with images in more than one set; only a split file can bring that about."""
        return [patient for patient, sets in self.sets_of_patient.items() if sets.bit_count() > 1]

    def _taken(self, image: Prepared) -> str:
        name = image.radiograph.image_id
        first = self._source_of_id[name]
        if image.radiograph.acquisition.sop_instance_uid:
            return f"its SOP Instance UID {name} is that of {first}, which came first; a UID names one image"
        reason = f"its image id {name} is taken by {first}, which came first; an id may occur once"
        if bytes.fromhex(image.sha256) in self._first_of_pixels:
            return reason
        if self.path_id(first) == self.path_id(image.radiograph.source):
            return f"{reason}; rename one of the two files"
        self.clashes += 1
        return f"{reason}; to take names from the folders too, import with --id-from path"

    def _split(self, name: str, patient: str) -> Split | None:
        if self.listed is None:
            return assign(patient, seed=self.seed, shares=self.shares)
        return self.listed.get(name)
