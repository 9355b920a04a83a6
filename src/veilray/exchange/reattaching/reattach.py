"""Returned pseudonymous images become derived DICOM objects at Site One, which alone holds the originals."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from veilray.errors import DataError, UsageError
from veilray.exchange.reattaching.resemblance import ALIKE, resemblance
from veilray.files import replacing
from veilray.images.derived import derived_object, derived_uid, encode_dicom
from veilray.images.dicom import is_dicom, parse_dicom
from veilray.images.read import open_dicom_bytes, read_radiograph
from veilray.images.sources import SourceItem, find_images, item_bytes
from veilray.inference.outcome import Denoised
from veilray.inference.record import DENOISED_RECORD, DenoisedBatch, read_denoised

_PSEUDONYM = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class _Returned:
    """One image that came back."""

    path: Path
    batch: DenoisedBatch


def reattach(
    returned: Sequence[Path],
    originals: Sequence[Path],
    out: Path,
    *,
    names: Callable[[str], Iterable[str]],
    key: bytes,
    unlike: bool = False,
) -> Iterator[Denoised]:
    """Match returned images to their originals and write each as a derived object, `out/SOP_INSTANCE_UID.dcm`.

    The files, and `out` where it is made, are readable by their owner only: patients are named in them.

    `returned` are folders of PNG files with their `denoised.json`; `originals` files, folders or archives. `names`
    gives the pseudonyms that a SOP Instance UID may have been released under; `key` as for `derived_object`. Gives one
    `Denoised` for each returned image, with the reason where it has no original, another size, an object already, or
    does not resemble its original: it may be another patient's. `unlike` attaches those too, each with a warning.

    Raises UsageError where a path is no such folder or `out` lies among the returned images, DataError where a record
    is damaged.
    """
    waiting: dict[str, list[_Returned]] = {}
    for folder in returned:
        if out.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"--out {out} lies inside the input {folder}; name a folder outside it")
        yield from _collect(folder, waiting)
    for item in find_images(originals):
        if waiting:
            yield from _match(item, waiting, out, names=names, key=key, unlike=unlike)
    for images in waiting.values():
        for image in images:
            yield _left(image, "none of the originals has this pseudonym, under the keys and the receiver given")


def _collect(folder: Path, waiting: dict[str, list[_Returned]]) -> Iterator[Denoised]:
    """Put the images of a folder among those that wait for their original; gives those that cannot."""
    if not (folder / DENOISED_RECORD).is_file():
        raise UsageError(f"{folder} holds no {DENOISED_RECORD}: give the folder that `veilray denoise` wrote")
    recorded = set()
    for batch in read_denoised(folder).batches:
        for name in batch.files:
            stem = name.removesuffix(".png")
            recorded.add(stem)
            # Whatever the record says, no path is made of anything but a pseudonym.
            if batch.release is None or not _PSEUDONYM.fullmatch(stem):
                yield Denoised(source=name, target=None, reason="it was not denoised from a release")
                continue
            waiting.setdefault(stem, []).append(_Returned(folder / f"{stem}.png", batch))
    for path in sorted(folder.glob("*.png")):
        if _PSEUDONYM.fullmatch(path.stem) and path.stem not in recorded:
            yield Denoised(source=str(path), target=None, reason=f"{DENOISED_RECORD} does not say how it was made")


def _match(
    item: SourceItem,
    waiting: dict[str, list[_Returned]],
    out: Path,
    *,
    names: Callable[[str], Iterable[str]],
    key: bytes,
    unlike: bool,
) -> Iterator[Denoised]:
    """Attach what waits for one original; nothing where it is no DICOM file or nothing does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = item_bytes(item)
            original = parse_dicom(data) if is_dicom(data) else None
            uid = str(original.get("SOPInstanceUID") or "") if original is not None else ""
        except Exception:  # pydicom raises anything on damaged files; one that is waited for is reported as unmatched
            return
        if original is None or not uid:
            return
        for name in names(uid):
            for image in waiting.pop(name, []):
                provenance = image.batch.provenance()
                target = out / f"{derived_uid('instance', uid, provenance=provenance, key=key)}.dcm"
                if target.exists():
                    yield _left(image, f"{target} exists already; remove it to make it again", made_before=True)
                    continue
                try:
                    doubt = _attach(image, data, target, key=key, unlike=unlike)
                except UsageError:
                    yield _left(image, "it is named but missing; denoise the release again")
                except DataError as error:
                    yield _left(image, str(error))
                else:
                    yield Denoised(source=str(image.path), target=target, warnings=(doubt,) if doubt else ())


def _attach(image: _Returned, data: bytes, target: Path, *, key: bytes, unlike: bool) -> str:
    """Write the derived object of an image and its original's file; gives what is doubtful about it, or nothing.

    DataError where it does not fit its original, or does not resemble it and `unlike` is not given.
    """
    original = open_dicom_bytes(data)
    pixels = read_radiograph(image.path).pixels
    provenance = image.batch.provenance()
    derived = derived_object(original.dataset, pixels, provenance=provenance, key=key, stored=original.stored)
    found = resemblance(pixels, original.pixels)
    doubt = ""
    if not found >= ALIKE:
        doubt = f"it does not resemble its original ({found:.3f} of 1, less than {ALIKE}): it may be another's"
        if not unlike:
            raise DataError(doubt)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(target, mode=0o600) as part:
        part.write_bytes(encode_dicom(derived))
    return doubt


def _left(image: _Returned, reason: str, *, made_before: bool = False) -> Denoised:
    return Denoised(source=str(image.path), target=None, reason=reason, made_before=made_before)
