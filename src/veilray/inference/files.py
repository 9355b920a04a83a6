"""Denoise files, folders, archives and releases into PNG files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from veilray.cohort.records import IdFrom
from veilray.cohort.release import Release
from veilray.errors import ImageError, LostRankError, UsageError
from veilray.images.radiograph import levels_dtype, to_levels
from veilray.images.read import read_radiograph, read_radiograph_bytes
from veilray.images.sources import SourceItem, find_images
from veilray.images.write import write_png
from veilray.inference.agreement import check_same_weights
from veilray.inference.denoiser import Denoiser
from veilray.inference.doubts import doubts, noise_doubts
from veilray.inference.given import check_mean
from veilray.inference.outcome import Denoised as Denoised
from veilray.inference.record import (
    DENOISED_RECORD,
    DenoisedRelease,
    DenoiseSettings,
    new_batch,
    note_denoised,
    read_denoised,
)
from veilray.parallel.group import ALONE, Group, fails_together
from veilray.parallel.sharding import Listing, merged, owner

ENDINGS = ("png", "jpg", "jpeg", "dcm", "dicom")
"""Endings that are not part of an image's name."""

_OWN = "the output would take its own place; name another folder as --out"
_PATHS = "to take names from the folders too, add --id-from path"


def denoise_inputs(
    inputs: Sequence[Path],
    out: Path,
    *,
    denoiser: Denoiser,
    mean: float | None,
    std: float | None = None,
    id_from: IdFrom = "stem",
    group: Group = ALONE,
) -> Iterator[Denoised]:
    """Denoise every image found in `inputs` into `out`, one by one: same size, same bit depth, PNG.

    `mean` is the mean of the noise; where it is None, a release's own or else the run's, or 0 where the run had a range
    of means. `std` is its standard deviation; where it is None, a release's own or else estimated. `id_from`: what
    names the file of an image, its source's stem or its path. Files that are in `out` already are never replaced.
    `denoised.json` beside them says how they were made, where the denoiser's weights came from a file. Of a `group`,
    whose ranks must share `out`, each rank makes the files whose names fall to it, so that files of one name meet in
    one rank; the lead yields what became of all inputs, its own first. Raises UsageError where `out` would lie among
    the inputs or for a `mean` or `std` as `denoise_settings`, DataError where its record is damaged or ranks see
    different inputs, RunError where they have different weights.
    """
    with fails_together(group):
        settings = denoise_settings(denoiser, mean=mean, std=std)
        _check_out(inputs, out)
        releases = {path: _opened(path, group) for path in inputs if (path / "release.json").is_file()}
    check_same_weights(denoiser, group, source="--model")
    with fails_together(group):
        if group.is_lead:
            for release in releases.values():
                _note_release(release, out, denoiser=denoiser, settings=settings)
    written: dict[Path, tuple[str, str]] = {}
    work = Listing(_work(inputs, releases, out, denoiser, settings, id_from, written), label=lambda one: one[0])
    others: list[tuple[int, Any]] = []
    together = False
    try:
        with fails_together(group):
            for number, (name, make) in enumerate(work):
                if owner(name, group) != group.rank:
                    continue
                result = make()
                if group.is_lead:
                    yield result
                else:
                    others.append((number, [result.source, str(result.target or ""), result.reason, *result.warnings]))
        work.check_same(group)
        together = True
    except Exception as error:
        together = not isinstance(error, LostRankError)  # else all ranks are here, for the same reason
        raise
    finally:
        names = [target.name for target in written]
        if together:
            names = [name for part in group.gather(names) for name in part]
        if group.is_lead:
            _note(out, names, denoiser=denoiser, settings=settings)
    for source, target, reason, *warnings in merged(others, group):
        if group.is_lead:
            place = Path(target) if target else None
            yield Denoised(source=source, target=place, reason=reason, warnings=tuple(warnings))


def _check_out(inputs: Sequence[Path], out: Path) -> None:
    for path in inputs:
        if out.resolve() == path.resolve() or (path.is_dir() and out.resolve().is_relative_to(path.resolve())):
            raise UsageError(f"--out {out} lies inside the input {path}; name a folder outside it")
    if (out / DENOISED_RECORD).exists():
        read_denoised(out)  # a damaged record is said before the work, not after


def _work(
    inputs: Sequence[Path],
    releases: Mapping[Path, Release],
    out: Path,
    denoiser: Denoiser,
    settings: DenoiseSettings,
    id_from: IdFrom,
    written: dict[Path, tuple[str, str]],
) -> Iterator[tuple[str, Callable[[], Denoised]]]:
    """Every input in order: the name of the file that it would become, and what makes it.

    `written` gathers, by file, what it was made of and the name that this one's path gives.
    """
    for path in inputs:
        if path in releases:
            release = releases[path]
            for row in range(len(release)):
                target = out / f"{release.image_id(row)}.png"
                yield target.name, partial(_released, release, row, target, denoiser=denoiser, settings=settings)
            continue
        for item in find_images([path]):
            by_path = _path_name(item, path)
            name = f"{_stem(item) if id_from == 'stem' else by_path}.png"
            yield name, partial(_file, item, out / name, by_path, denoiser=denoiser, settings=settings, written=written)


def denoise_settings(denoiser: Denoiser, *, mean: float | None, std: float | None = None) -> DenoiseSettings:
    """What decides the pixels of a denoiser's output besides its weights.

    Raises UsageError for a `mean` that is not finite, a `std` that is not above 0, or one that the network has no use
    for.
    """
    check_mean(mean)
    if std is not None and not denoiser.takes_std:
        raise UsageError(f"a std of {std:g} was given, but this network is not told the noise's std: leave it out")
    if std is not None and not 0.0 < std < float("inf"):
        raise UsageError(f"a std of {std:g} was given: it must be above 0")
    return DenoiseSettings(
        mean=mean,
        std=std,
        tile=denoiser.tile,
        precision="bf16" if denoiser.dtype == torch.bfloat16 else "fp32",
        head=denoiser.origin.head if denoiser.origin else None,
    )


def _note(
    out: Path,
    names: list[str],
    *,
    denoiser: Denoiser,
    settings: DenoiseSettings,
    release: DenoisedRelease | None = None,
) -> None:
    if denoiser.origin is None or not names:
        return
    batch = new_batch(weights_sha256=denoiser.origin.weights_sha256, settings=settings, release=release)
    note_denoised(out, batch, names)


def _file(
    item: SourceItem,
    target: Path,
    by_path: str,
    *,
    denoiser: Denoiser,
    settings: DenoiseSettings,
    written: dict[Path, tuple[str, str]],
) -> Denoised:
    if item.rejection is not None:
        return Denoised(source=item.name, target=None, reason=item.rejection)
    if target in written:
        first, name = written[target]
        advice = "rename one of the two files" if name == by_path else _PATHS
        return Denoised(source=item.name, target=None, reason=f"{first} gave {target} already; {advice}")
    if target.exists():
        own = item.path is not None and target.samefile(item.path)
        reason = f"{target} exists already; remove it to denoise again"
        return Denoised(source=item.name, target=None, reason=_OWN if own else reason)
    mean, std = settings.mean, settings.std
    try:
        if item.path is not None:
            radiograph = read_radiograph(item.path)
        else:
            radiograph = read_radiograph_bytes(item.data or b"", source=item.name)
        pixels = denoiser(radiograph.pixels, mean=mean, std=std, warn=False)
    except ImageError as error:
        return Denoised(source=item.name, target=None, reason=str(error))
    write_png(target, to_levels(pixels, levels_dtype(radiograph.bit_depth)))
    written[target] = item.name, by_path
    found = doubts(radiograph, denoiser.noise, mean=mean, std=std)
    return Denoised(source=item.name, target=target, warnings=tuple(found))


def _stem(item: SourceItem) -> str:
    """The file's name without its ending; names of DICOM files are often UIDs, which only look as if they had one."""
    name = item.path.name if item.path is not None else PurePosixPath(item.name.rpartition(":")[2]).name
    return _without_ending(name)


def _path_name(item: SourceItem, given: Path) -> str:
    """The file's path from the given file or folder on, as one name."""
    path = Path(item.name)
    parts = path.relative_to(given.parent) if path.is_relative_to(given.parent) else path
    return "_".join(_without_ending(str(parts)).replace(":", "/").strip("/").split("/"))


def _without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem if dot and ending.lower() in ENDINGS else name


def _opened(path: Path, group: Group) -> Release:
    release = Release.open(path)
    if group.local_rank == 0:  # one rank a machine reads every pixel
        release.verify()
    return release


def _note_release(release: Release, out: Path, *, denoiser: Denoiser, settings: DenoiseSettings) -> None:
    # Before the images themselves: after a kill the record names too many, and running again makes what is missing.
    # The other way round it would lack some for good.
    source = DenoisedRelease(release_id=release.record.release_id, digest=release.digest, noise=release.record.noise)
    names = [f"{release.image_id(row)}.png" for row in range(len(release))]
    new = [name for name in names if not (out / name).exists()]
    _note(out, new, denoiser=denoiser, settings=settings, release=source)


def _released(release: Release, row: int, target: Path, *, denoiser: Denoiser, settings: DenoiseSettings) -> Denoised:
    name = release.image_id(row)
    if target.exists():
        return Denoised(source=name, target=None, reason=f"{target} exists already; remove it to denoise again")
    chosen = np.array([row])
    mean = release.noise.single_mean if settings.mean is None else settings.mean
    std = float(release.stds(chosen)[0]) if settings.std is None else settings.std
    noisy = release.gather_noisy(chosen)[0]
    pixels = denoiser(noisy, mean=mean, std=std, warn=False)
    write_png(target, to_levels(pixels, release.dtype(row)))
    found = noise_doubts(noisy, denoiser.noise, mean=mean, std=std)
    return Denoised(source=name, target=target, warnings=tuple(found))
