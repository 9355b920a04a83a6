"""veilray denoise: images in, denoised PNG or derived DICOM out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from veilray.cli.site_keys import KEYS, PASSPHRASE_FILE
from veilray.errors import UsageError
from veilray.parallel.group import ALONE, Group, fails_together

if TYPE_CHECKING:
    from veilray.cohort.records import IdFrom
    from veilray.exchange.keys.folder import KeyFolder
    from veilray.inference.denoiser import Denoiser
    from veilray.inference.files import Denoised

LEFT_OUT_FILE = "left_out.csv"
"""Beside derived objects: the returned images that have none, and why."""
MOST_WARNINGS = 5
"""Images whose warnings are shown one by one."""


def denoise_command(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="PNG, JPEG or DICOM files, folders, archives, or a release; with --reattach, denoised images.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for what is written.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(
            help="Run folder, exported model, file of weights, or a name of veilray models; left out, default.",
            show_default=False,
        ),
    ] = None,
    mean: Annotated[
        float | None,
        typer.Option(
            help="Mean of the images' noise. Left out: the release's or the training's, or 0 where that was a range."
        ),
    ] = None,
    std: Annotated[
        float | None,
        typer.Option(
            help="Its standard deviation, for networks that are told it. Left out: the release's, or estimated.",
            show_default=False,
        ),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(help="Side of a tile in pixels; larger images are cut up.", show_default=False)
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(help="Of a U-Net++ trained with deep supervision: stop at this head.", show_default=False),
    ] = None,
    id_from: Annotated[
        Literal["stem", "path"] | None,
        typer.Option(help="Name PNG files by their source's stem (if left out), or by its path.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dicom: Annotated[
        bool, typer.Option("--dicom", help="Write derived DICOM objects, from DICOM inputs; needs --keys.")
    ] = False,
    reattach: Annotated[
        list[Path] | None,
        typer.Option(
            help="Originals of images that came back denoised: write them as derived DICOM; needs --keys, --receiver.",
            show_default=False,
        ),
    ] = None,
    keys: Annotated[Path | None, KEYS] = None,
    receiver: Annotated[
        str | None,
        typer.Option(help="Pinned site that the images were released to and came back from.", show_default=False),
    ] = None,
    passphrase_file: Annotated[Path | None, PASSPHRASE_FILE] = None,
    every: Annotated[
        bool, typer.Option("--all", help="With --reattach: exit status 3 unless every returned image has its object.")
    ] = False,
    unlike: Annotated[
        bool,
        typer.Option("--unlike", help="With --reattach: attach images too that do not resemble their originals."),
    ] = False,
) -> None:
    """Denoise images of any size into PNG files of the same size and bit depth, or into derived DICOM objects.

    Nothing is overwritten. The results are for research, not for diagnosis. Under torchrun the ranks share the PNG
    files out; --dicom and --reattach are for one process.
    """
    from veilray.cli.ranks import working_group

    with working_group() as group:
        with fails_together(group):
            if group.joined and (dicom or reattach):
                raise UsageError("--dicom and --reattach work in one process: run this command without torchrun")
            if reattach:
                given = {"--model": model, "--mean": mean, "--std": std, "--tile": tile, "--head": head}
                given |= {"--dicom": dicom or None, "--id-from": id_from}
                _refuse("--reattach takes images that are denoised already", given)
                results = _reattached(inputs, reattach, out, _opened(keys, passphrase_file), receiver, unlike)
            else:
                flags = {"--all": every or None, "--unlike": unlike or None}
                _refuse("only --reattach takes it", {"--receiver": receiver, **flags})
                if dicom:
                    _refuse("derived objects are named by their UIDs", {"--id-from": id_from})
                else:
                    _refuse("only DICOM out needs keys", {"--keys": keys, "--passphrase-file": passphrase_file})
                uid_key = _uid_key(_opened(keys, passphrase_file)) if dicom else None
                denoiser = _loaded(model, device, tile, head, group)
                results = _denoised(inputs, out, denoiser, mean, std, uid_key, id_from or "stem", group)
        left_out = _report(results, out, "attached" if reattach else "denoised", group)
    if reattach:
        _list_left_out(left_out, out, every)


def _loaded(model: str | None, device: str, tile: int | None, head: int | None, group: Group) -> Denoiser:
    from veilray.cli.ranks import rank_device
    from veilray.inference.denoiser import Denoiser
    from veilray.models.shipped.find import DEFAULT_MODEL, SHIPPED, shipped_names
    from veilray.parallel.devices import keep_freed_memory, pick_device

    if model is None:
        if DEFAULT_MODEL not in shipped_names():
            raise UsageError(
                f"--model is missing, and this version ships no model named {DEFAULT_MODEL!r}: give a run folder, an "
                "exported model or a file of weights"
            )
        model = SHIPPED + DEFAULT_MODEL
    keep_freed_memory()
    return Denoiser.load(model, device=rank_device(group, pick_device(device)).type, tile=tile, head=head)


def _denoised(
    inputs: list[Path],
    out: Path,
    denoiser: Denoiser,
    mean: float | None,
    std: float | None,
    uid_key: bytes | None,
    id_from: IdFrom,
    group: Group,
) -> Iterable[Denoised]:
    from veilray.inference.dicom_files import denoise_dicom
    from veilray.inference.files import denoise_inputs

    if uid_key is None:
        return denoise_inputs(inputs, out, denoiser=denoiser, mean=mean, std=std, id_from=id_from, group=group)
    return denoise_dicom(inputs, out, denoiser=denoiser, mean=mean, std=std, key=uid_key)


def _reattached(
    inputs: list[Path], originals: list[Path], out: Path, keys: KeyFolder, receiver: str | None, unlike: bool
) -> Iterable[Denoised]:
    from veilray.exchange.reattaching.reattach import reattach
    from veilray.exchange.release.pseudonyms import Pseudonyms

    if receiver is None:
        raise UsageError("--receiver is missing: each receiver's pseudonyms are others")
    # Under every card that the receiver has had, and by retired keys too: what was released before either changed may
    # come back after it.
    secrets = [secret for card in keys.receiver_ids(receiver) for secret in keys.pseudonym_keys(card)]
    known = [Pseudonyms(secret.reveal()) for secret in secrets]

    def names(uid: str) -> list[str]:
        return [pseudonyms.image(uid) for pseudonyms in known]

    return reattach(inputs, originals, out, names=names, key=_uid_key(keys), unlike=unlike)


def _opened(keys: Path | None, passphrase_file: Path | None) -> KeyFolder:
    from veilray.cli.site_keys import open_keys

    if keys is None:
        raise UsageError("--keys is missing: the UIDs of derived objects are made with this site's key")
    return open_keys(keys, passphrase_file)


def _uid_key(keys: KeyFolder) -> bytes:
    # From the one key that is never rotated: the same image must get the same UID next year.
    return keys.ledger_key().derive("veilray uids of derived objects").reveal()


def _refuse(why: str, given: Mapping[str, object]) -> None:
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise UsageError(f"{why}: leave {wrong[0]} out")


def _report(results: Iterable[Denoised], out: Path, verb: str, group: Group = ALONE) -> list[Denoised]:
    """Tell what became of the inputs; gives those that were left out. DataError where nothing was or is there."""
    from veilray.cli.ranks import shown_by_lead
    from veilray.errors import DataError

    done = doubtful = 0
    left_out: list[Denoised] = []
    with shown_by_lead(group, None, verb, "images") as bar:
        for result in results:
            bar.advance(1)
            if result.target is None:
                left_out.append(result)
                bar.say(f"left out {result.source}: {result.reason}")
            else:
                done += 1
            for warning in result.warnings[: None if doubtful < MOST_WARNINGS else 0]:
                bar.say(f"warning: {result.source}: {warning}")
            doubtful += bool(result.warnings)
    with fails_together(group):
        if group.is_lead and not done and not any(result.made_before for result in left_out):
            raise DataError(
                f"nothing was {verb}; {len(left_out)} inputs were left out" if left_out else "no images were found"
            )
    if group.is_lead:
        if doubtful > MOST_WARNINGS:
            typer.echo(f"warning: as for these, the result is doubtful for {doubtful} images in all", err=True)
        typer.echo(f"{done} images {verb} into {out}" + (f", {len(left_out)} left out" if left_out else ""))
    return left_out


def _list_left_out(left_out: list[Denoised], out: Path, every: bool) -> None:
    """Write the returned images that have no derived object beside the others'; with `every`, DataError for any."""
    import csv

    from veilray.errors import DataError
    from veilray.files import replacing

    missing = [result for result in left_out if not result.made_before]
    if not missing:
        (out / LEFT_OUT_FILE).unlink(missing_ok=True)
        return
    with (
        replacing(out / LEFT_OUT_FILE, mode=0o600) as part,
        part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([("image", "reason"), *((result.source, result.reason) for result in missing)])
    count = f"{len(missing)} returned images have no derived object; {out / LEFT_OUT_FILE} lists them with reasons"
    if every:
        raise DataError(count)
    typer.echo(f"warning: {count}", err=True)
