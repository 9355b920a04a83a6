"""Opening: decrypted, checked against its signature and put in place as a whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from veilray.errors import BundleError, UsageError, VeilrayError
from veilray.exchange.keys.keyfile import AGE_HEADER
from veilray.exchange.sealing.bundle import BundleSink, Faithful, streams_first
from veilray.exchange.sealing.manifest import Manifest, decode_manifest
from veilray.exchange.sealing.sequences import Sequences, log
from veilray.exchange.watching import ignore
from veilray.files import replacing_folder, sha256_file

if TYPE_CHECKING:
    from veilray.exchange.keys.folder import KeyFolder, PublicCard

# Some hundred receivers; a longer header is meant to keep the reader busy.
_MOST_HEADER = 2**16


@dataclass(frozen=True, kw_only=True)
class OpenedBundle:
    """What `open_bundle` found."""

    path: Path
    manifest: Manifest
    sender: str
    """Name under which the sender is pinned."""
    in_place: bool
    """Whether the folder was there already, with the same content; then nothing was written."""


def open_bundle(
    bundle: Path, out: Path, *, keys: KeyFolder, advance: Callable[[int], None] | None = None
) -> OpenedBundle:
    """Open a bundle into the new folder `out`, its owner's alone; one that holds it already is left as it is.

    Everything is decrypted into a hidden folder beside `out`, checked, flushed to the disk and renamed. Memory does not
    grow with the size. `advance` is called with the bytes that were checked. The refusal is noted in the key folder's
    log, with its reason.

    Raises BundleError for a bundle that is cut short, altered, reordered, replayed, not sealed for these keys, not
    signed by the one it names, or from a sender whose card is not pinned; UsageError where `out` holds something else;
    VeilrayError where the disk has no room for it.
    """
    if not bundle.is_file():
        raise UsageError(f"{bundle} is missing or not a file; a bundle is one file, *.veil")
    intake = _Intake(bundle, out, keys, advance or ignore)
    try:
        opened = intake.open()
    except BundleError as error:
        known = intake.manifest  # set once its signature holds
        facts = {"bundle_id": known.bundle_id, "sender": known.sender} if known else {}
        log(keys.path, "refused", reason=error.reason, **facts)
        raise
    log(
        keys.path,
        "opened in place" if opened.in_place else "opened",
        bundle_id=opened.manifest.bundle_id,
        kind=opened.manifest.kind,
        sender=opened.manifest.sender,
        sequence=opened.manifest.sequence,
        parts=len(opened.manifest.parts),
        bytes=opened.manifest.n_bytes,
    )
    return opened


class _Intake:
    """One opening: what is known so far of the bundle."""

    def __init__(self, bundle: Path, out: Path, keys: KeyFolder, advance: Callable[[int], None]) -> None:
        self.bundle, self.out, self.keys, self.advance = bundle, out, keys, advance
        self.sequences = Sequences(keys.path)
        self.manifest: Manifest | None = None
        self.sender = ""
        self.in_place = out.exists()

    def open(self) -> OpenedBundle:
        """Into `out`, or compared with what is there."""
        if self.in_place:
            manifest = self._unpack(None)
            if not _holds(self.out, manifest):
                raise UsageError(f"{self.out} already exists and is not this bundle, opened; name a new folder")
            return OpenedBundle(path=self.out, manifest=manifest, sender=self.sender, in_place=True)
        with replacing_folder(self.out, mode=0o700) as folder:
            manifest = self._unpack(folder)
            # Before the folder has its name: should the machine stop in between, the same bundle opens again.
            self.sequences.record(manifest, self.keys.fingerprints_of(self.keys.peer(self.sender)))
        return OpenedBundle(path=self.out, manifest=manifest, sender=self.sender, in_place=False)

    def _unpack(self, folder: Path | None) -> Manifest:
        with (
            self.bundle.open("rb") as stream,
            closing(BundleSink(folder, accept=self._accept, advance=self.advance)) as sink,
        ):
            _check_header(stream)
            source, target = Faithful(stream), Faithful(sink)
            with streams_first(source, target):
                self._decrypt(source, target)
            sink.finish()
        if self.manifest is None:
            raise BundleError(f"{self.bundle} is not a bundle of Veilray's", reason="format")
        return self.manifest

    def _decrypt(self, source: Faithful, target: Faithful) -> None:
        import pyrage

        try:
            pyrage.decrypt_io(source, target, list(self.keys.age_identities()))
        except (pyrage.DecryptError, OSError) as error:
            if "matching keys" not in str(error):
                raise BundleError(
                    f"{self.bundle} was cut short, damaged or altered: its encryption does not hold; ask for another "
                    "copy",
                    reason="encryption",
                ) from None
            raise BundleError(
                f"{self.bundle} is not sealed for these keys, or its beginning was altered; compare the fingerprint "
                "that its sender sealed it for with yours",
                reason="key",
            ) from None

    def _accept(self, signed: bytes, signature: bytes) -> Manifest:
        """The manifest, if it is signed by a pinned sender, for this site, and not older than what was opened."""
        manifest = decode_manifest(signed)
        card = self._pinned(manifest.sender)
        self._verify(card, signed, signature)
        self.manifest, self.sender = manifest, card.name
        if not set(manifest.receivers) & self.keys.own_fingerprints():
            raise BundleError(
                f"the bundle of {card.name} is not addressed to this site: somebody else forwarded it; ask "
                f"{card.name} for one of your own",
                reason="receiver",
            )
        if self.in_place:
            return manifest  # nothing will be written: whatever its age, it is harmless
        self.sequences.check(manifest, self.keys.fingerprints_of(card))
        free = shutil.disk_usage(self.out.parent).free
        if manifest.n_bytes > free:
            raise VeilrayError(
                f"{self.out.parent} has {free / 1e6:,.0f} MB free, the bundle needs {manifest.n_bytes / 1e6:,.0f}; "
                "free some space"
            )
        return manifest

    def _pinned(self, fingerprint: str) -> PublicCard:
        """The sender's pinned card, or a replaced one with the same signing key."""
        cards = self.keys.peers()
        for card in cards:
            if card.fingerprint == fingerprint:
                return card
        for former in self.keys.former_cards():
            if former.card.fingerprint == fingerprint and former.why == "replaced":
                for card in cards:
                    if fingerprint in self.keys.fingerprints_of(card):
                        return _successor(former.card, card)
        raise BundleError(
            f"the bundle says it is from {fingerprint[:16]}..., whose card is not pinned; if you expected it, compare "
            "the whole fingerprint with its owner and pin the card",
            reason="sender",
        )

    @staticmethod
    def _verify(card: PublicCard, signed: bytes, signature: bytes) -> None:
        from cryptography.exceptions import InvalidSignature

        try:
            card.public_key().verify(signature, signed)
        except InvalidSignature:
            raise BundleError(
                f"the signature is not {card.name}'s: the bundle was forged or altered", reason="signature"
            ) from None


def _successor(former: PublicCard, card: PublicCard) -> PublicCard:
    """The card that replaced a sender's; BundleError unless both sign with one key, which may have been stolen."""
    if former.signing_key != card.signing_key:
        raise BundleError(
            f"the bundle was signed with a key that {card.name} has replaced since; ask {card.name} to seal it again",
            reason="replaced",
        )
    return card


def _check_header(stream: BinaryIO) -> None:
    """BundleError where a file does not begin like age's (age-encryption.org/v1) with a header of sensible length."""
    start = stream.read(_MOST_HEADER)
    stream.seek(0)
    if not start.startswith(AGE_HEADER) or b"\n--- " not in start:
        raise BundleError("this is not a bundle: it does not begin as age encryption does", reason="format")


def _holds(folder: Path, manifest: Manifest) -> bool:
    """Whether a folder holds the parts of a bundle and nothing else."""
    if not folder.is_dir() or {file.name for file in folder.iterdir()} != {part.name for part in manifest.parts}:
        return False
    files = [(folder / part.name, part) for part in manifest.parts]
    return all(
        file.is_file()
        and not file.is_symlink()
        and file.stat().st_size == part.size
        and sha256_file(file) == part.sha256
        for file, part in files
    )
