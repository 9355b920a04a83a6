"""Two sites that know each other, something to seal, and bundles as a forger would make them."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyrage

from veilray.cohort.records import ReleasedNoise
from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.sealing.seal import seal
from veilray.images.write import write_png
from veilray.inference.record import DenoisedRelease, DenoiseSettings, new_batch, note_denoised

RELEASE = DenoisedRelease(release_id="5e" * 16, digest="d1" * 32, noise=ReleasedNoise(mean=0.1, std=0.2, clip=True))
"""What `denoised_folder` names where nothing else is said."""


@dataclass(frozen=True)
class Sites:
    """Key folders of two sites, each with the other's card pinned, and of a stranger, who has theirs."""

    one: KeyFolder
    two: KeyFolder
    stranger: KeyFolder


def make_sites(folder: Path) -> Sites:
    """New keys, without a passphrase."""
    one = KeyFolder.create(folder / "one", name="one")
    two = KeyFolder.create(folder / "two", name="two", role="site-two")
    stranger = KeyFolder.create(folder / "stranger", name="stranger", role="site-two")
    one.pin(two.card)
    two.pin(one.card)
    stranger.pin(one.card)
    stranger.pin(two.card)
    return Sites(one, two, stranger)


def copied_sites(keys: Path, folder: Path) -> Sites:
    """Copies of the key folders that `make_sites` made in `keys`, which a test may change."""
    shutil.copytree(keys, folder)
    return Sites(*(KeyFolder.open(folder / name) for name in ("one", "two", "stranger")))


def denoised_folder(
    folder: Path, *, images: int = 3, side: int = 16, seed: int = 1, release: DenoisedRelease | None = RELEASE
) -> Path:
    """Images as `veilray denoise` leaves them, under pseudonyms."""
    random = np.random.default_rng(seed)
    names = [f"{random.bytes(16).hex()}.png" for _ in range(images)]
    for name in names:
        write_png(folder / name, random.integers(0, 256, (side, side), dtype=np.uint8))
    settings = DenoiseSettings(mean=None, tile=1024, precision="fp32")
    note_denoised(folder, new_batch(weights_sha256="ab" * 32, settings=settings, release=release), names)
    return folder


def sealed(folder: Path, sites: Sites, *, name: str = "a", seed: int = 1) -> Path:
    """A bundle of a few denoised images from site two for site one."""
    source = denoised_folder(folder / f"{name}-source", seed=seed)
    return seal(source, folder / f"{name}.veil", keys=sites.two, receivers=[sites.one.card]).path


def decrypted(bundle: Path, keys: KeyFolder) -> bytes:
    """The tar stream inside a bundle."""
    plain: bytes = pyrage.decrypt(bundle.read_bytes(), [keys.age_identity()])
    return plain


def encrypted(plain: bytes, path: Path, *, receiver: KeyFolder) -> Path:
    """Any bytes, encrypted for a receiver, as everybody can who has the card."""
    recipient = pyrage.x25519.Recipient.from_str(receiver.card.age_recipient)
    path.write_bytes(pyrage.encrypt(plain, [recipient]))
    return path


def members(plain: bytes) -> dict[str, bytes]:
    """Files in a tar, by the standard library."""
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        return {info.name: (tar.extractfile(info) or io.BytesIO()).read() for info in tar}


def tar_of(files: list[tuple[str, bytes]]) -> bytes:
    """A tar of files as the format wants it."""
    out = io.BytesIO()
    for name, content in files:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o600
        out.write(info.tobuf(format=tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
    return out.getvalue() + bytes(1024)


def resigned(bundle: Path, sites: Sites, **changes: Any) -> list[tuple[str, bytes]]:
    """The files of a bundle from two to one, its manifest changed and signed again by the genuine sender."""
    files = members(decrypted(bundle, sites.one))
    manifest = json.loads(files.pop("manifest.json")) | changes
    del files["manifest.sig"]
    signed = json.dumps(manifest).encode()
    return [("manifest.json", signed), ("manifest.sig", sites.two.signing_key().sign(signed)), *files.items()]
