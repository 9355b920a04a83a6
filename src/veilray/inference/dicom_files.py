"""Denoise DICOM files into derived DICOM objects, where no exchange took place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from veilray.errors import ImageError, UsageError
from veilray.files import replacing
from veilray.images.derived import derived_object, derived_uid, encode_dicom, is_derived
from veilray.images.dicom import is_dicom, parse_dicom
from veilray.images.read import read_radiograph_bytes
from veilray.images.sources import SourceItem, find_images, item_bytes
from veilray.inference.denoiser import Denoiser
from veilray.inference.doubts import doubts
from veilray.inference.files import denoise_settings
from veilray.inference.outcome import Denoised
from veilray.inference.record import DenoisedBatch, new_batch


def denoise_dicom(
    inputs: Sequence[Path],
    out: Path,
    *,
    denoiser: Denoiser,
    mean: float | None,
    std: float | None = None,
    key: bytes,
) -> Iterator[Denoised]:
    """Denoise every DICOM radiograph found in `inputs` into a derived object, `out/SOP_INSTANCE_UID.dcm`, one by one.

    `mean` and `std` as for `denoise_inputs`, `key` as for `derived_object`. Objects that are there already are never
    replaced, objects that Veilray derived are left out. Raises UsageError where a release is among the inputs, which
    has no headers, the denoiser's weights come from no file, or the network has no use for a given `std`.
    """
    if denoiser.origin is None:
        raise UsageError("a derived object names the weights it was made with: load the denoiser from a file")
    for path in inputs:
        if (path / "release.json").is_file():
            raise UsageError(f"{path} is a release, which has no DICOM headers: denoise it, then use --reattach")
    settings = denoise_settings(denoiser, mean=mean, std=std)
    batch = new_batch(weights_sha256=denoiser.origin.weights_sha256, settings=settings)
    for path in inputs:
        for item in find_images([path]):
            try:
                target, found = _file(item, out, denoiser, batch, key)
                yield Denoised(source=item.name, target=target, warnings=tuple(found))
            except ImageError as error:
                yield Denoised(source=item.name, target=None, reason=str(error))


def _file(item: SourceItem, out: Path, denoiser: Denoiser, batch: DenoisedBatch, key: bytes) -> tuple[Path, list[str]]:
    """The object that was written, and what makes it doubtful."""
    data = item_bytes(item)
    if not is_dicom(data):
        raise ImageError("it is no DICOM file; without --dicom it becomes a PNG")
    provenance, mean, std = batch.provenance(), batch.settings.mean, batch.settings.std
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        radiograph = read_radiograph_bytes(data, source=item.name)
        original = parse_dicom(data)
        if is_derived(original):
            raise ImageError("Veilray made it from another image; denoise that one")
        uid = derived_uid("instance", radiograph.image_id, provenance=provenance, key=key)
        target = out / f"{uid}.dcm"
        if target.exists():
            raise ImageError(f"{target} exists already; remove it to denoise again")
        pixels = denoiser(radiograph.pixels, mean=mean, std=std, warn=False)
        derived = derived_object(original, pixels, provenance=provenance, key=key)
        out.mkdir(mode=0o700, parents=True, exist_ok=True)  # patients are named in it
        with replacing(target, mode=0o600) as part:
            part.write_bytes(encode_dicom(derived))
    return target, doubts(radiograph, denoiser.noise, mean=mean, std=std)
