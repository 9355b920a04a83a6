"""Mutated bundles, manifests, tickets, cards, keys, backups and DICOM files: how many are refused; none does harm.

    python benchmarks/fuzz.py [--count 10000] [--seed 1] [--save]

Each case is a genuine object with something changed: bits flipped, bytes cut out, doubled or replaced; inside the
encryption as well, since everyone who has a card can encrypt for it. A case counts as refused when Veilray raises an
error of its own with exit status 3 or 4. It is a failure when another error comes through, when altered content is
accepted, when anything but the key folder's log changes, and when a case takes more than 5 s. A DICOM file bears no
signature: one that still is a radiograph is read, and counts as such.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyrage

from fuzz_files import read_mutated_dicom
from fuzz_keys import Locked, keys_as_they_are, make_locked, mutated_backup, mutated_keys, mutated_locked_keys
from veilray.cohort.records import ReleasedNoise
from veilray.errors import DataError, RefusedError
from veilray.exchange.keys.card import parse_card
from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.sealing.bundle import tar_header
from veilray.exchange.sealing.open_ import open_bundle
from veilray.exchange.sealing.seal import seal
from veilray.exchange.transfer.ticket import check_ticket, make_ticket
from veilray.images.write import write_png
from veilray.inference.record import DenoisedRelease, DenoiseSettings, new_batch, note_denoised

LIMIT = 5.0
"""Seconds that a case may take."""
KINDS = (
    *("ciphertext", "inside the encryption", "manifest, signed again", "ticket", "card"),
    *("key file", "key file with a passphrase", "backup", "DICOM"),
)
_SHARES = (0.23, 0.18, 0.12, 0.08, 0.05, 0.08, 0.05, 0.05, 0.16)
_FINE = ("refused", "accepted unchanged", "read")


@dataclass(frozen=True)
class Genuine:
    """What is mutated."""

    folder: Path
    sender: KeyFolder
    receiver: KeyFolder
    bundle: bytes
    plain: bytes
    """The tar inside."""
    content: dict[str, bytes]
    """The sealed files."""
    keys: tuple[object, ...]
    """What the receiver's key folder gives."""
    locked: Locked
    """Another key folder, with a passphrase, and its backup."""

    def encrypt(self, plain: bytes) -> bytes:
        """Anything, for the receiver."""
        recipient = pyrage.x25519.Recipient.from_str(self.receiver.card.age_recipient)
        encrypted: bytes = pyrage.encrypt(plain, [recipient])
        return encrypted


def make_genuine(folder: Path) -> Genuine:
    """Two sites and a small bundle from the second to the first."""
    receiver = KeyFolder.create(folder / "one", name="one")
    sender = KeyFolder.create(folder / "two", name="two", role="site-two")
    receiver.pin(sender.card)
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    names = [f"{number:032x}.png" for number in range(2)]
    for name in names:
        write_png(folder / "source" / name, pixels)
    settings = DenoiseSettings(mean=None, tile=64, precision="fp32")
    release = DenoisedRelease(release_id="5e" * 16, digest="d1" * 32, noise=ReleasedNoise(mean=0.1, std=0.2, clip=True))
    batch = new_batch(weights_sha256="ab" * 32, settings=settings, release=release)
    note_denoised(folder / "source", batch, names)
    seal(folder / "source", folder / "a.veil", keys=sender, receivers=[receiver.card])
    bundle = (folder / "a.veil").read_bytes()
    content = {file.name: file.read_bytes() for file in (folder / "source").iterdir()}
    plain: bytes = pyrage.decrypt(bundle, [receiver.age_identity()])
    keys = keys_as_they_are(receiver.path)
    return Genuine(folder, sender, receiver, bundle, plain, content, keys, make_locked(folder))


def mutate(data: bytes, chance: random.Random) -> bytes:
    """`data` with one to four changes; never `data` itself."""
    value = bytearray(data)
    while value == data:
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            _change(value, chance)
    return bytes(value)


def _change(value: bytearray, chance: random.Random) -> None:
    start, stop = sorted(chance.randrange(len(value) + 1) for _ in range(2))
    stop = min(stop, start + chance.choice((1, 4, 64, 1024, len(value) + 1)))
    match chance.randrange(7):
        case 0 | 1 if value:
            value[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
        case 2:
            del value[start:stop]
        case 3:
            value[start:start] = value[start:stop]
        case 4:
            value[start:stop] = chance.randbytes(stop - start)
        case 5:
            value[start:start] = chance.randbytes(chance.choice((1, 16, 512, 5000)))
        case _:
            del value[start:]


_STRANGE = ("../x", "/etc/x", "", "\0", "x" * 5000, "ÿ", -1, 0, 2**63, 1e308, None, True, [], {}, [[]] * 50)


def mutate_json(data: bytes, chance: random.Random) -> bytes:
    """A JSON object with one field, at any depth, replaced by something strange, dropped or added."""
    value = json.loads(data)
    places = list(_places(value))
    holder, key = chance.choice(places)
    match chance.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder["more"] = chance.choice(_STRANGE)
        case _:
            holder[key] = chance.choice(_STRANGE)
    return json.dumps(value).encode()


def _places(value: object) -> Iterator[tuple[dict[str, object] | list[object], object]]:
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):  # type: ignore[arg-type]
        yield value, key  # type: ignore[misc]
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _signed_again(genuine: Genuine, chance: random.Random) -> bytes:
    """A tar whose manifest was changed and signed by the genuine sender: what a careless or hostile sender could do."""
    begin = 512
    size = int(genuine.plain[124:135], 8)
    manifest = genuine.plain[begin : begin + size]
    changed = mutate_json(manifest, chance) if chance.random() < 0.7 else mutate(manifest, chance)
    rest = genuine.plain[begin + size + -size % 512 :]
    signature = genuine.sender.signing_key().sign(changed)
    header = tar_header("manifest.json", len(changed))
    return header + changed + bytes(-len(changed) % 512) + rest[:512] + signature + rest[512 + 64 :]


def try_case(genuine: Genuine, kind: str, chance: random.Random) -> str:
    """Run one case; "refused", "accepted unchanged", or what went wrong."""
    match kind:
        case "ciphertext":
            return _try_bundle(genuine, mutate(genuine.bundle, chance))
        case "inside the encryption":
            return _try_bundle(genuine, genuine.encrypt(mutate(genuine.plain, chance)))
        case "manifest, signed again":
            return _try_bundle(genuine, genuine.encrypt(_signed_again(genuine, chance)))
        case "ticket":
            ticket = make_ticket(genuine.folder / "a.veil", keys=genuine.sender)
            data = mutate(ticket.model_dump_json().encode(), chance)
            return _try(lambda: check_ticket(data, card=genuine.sender.card) == ticket.ticket)
        case "key file":
            return _try_here(genuine, lambda: mutated_keys(genuine.receiver.path, genuine.keys, chance, mutate))
        case "key file with a passphrase":
            return _try_here(genuine, lambda: mutated_locked_keys(genuine.locked, chance, mutate))
        case "backup":
            return _try_here(genuine, lambda: mutated_backup(genuine.locked, genuine.folder, chance, mutate))
        case "DICOM":
            return _try(lambda: read_mutated_dicom(chance, mutate), accepted="read")
        case _:
            card = genuine.sender.card
            data = mutate(card.to_text().encode(), chance)
            return _try(lambda: parse_card(data, source="a card") == card)


def _try_here(genuine: Genuine, run: Callable[[], bool]) -> str:
    """As `_try`; no other file of the folder may change."""
    before = _listing(genuine.folder)
    result = _try(run)
    return result if _listing(genuine.folder) == before else f"other files changed ({result})"


def _try_bundle(genuine: Genuine, data: bytes) -> str:
    path, out = genuine.folder / "case.veil", genuine.folder / "case-out"
    path.write_bytes(data)
    (genuine.receiver.path / "exchange/sequences.json").unlink(missing_ok=True)

    def as_sealed() -> bool:
        open_bundle(path, out, keys=genuine.receiver)
        try:
            return {file.name: file.read_bytes() for file in out.iterdir()} == genuine.content
        finally:
            for file in out.iterdir():
                file.unlink()
            out.rmdir()

    return _try_here(genuine, as_sealed)


def _listing(folder: Path) -> dict[Path, int]:
    kept = ("log.jsonl", "sequences.json", "lock")
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name not in kept}


def _try(run: Callable[[], bool], *, accepted: str = "accepted unchanged") -> str:
    begun = time.perf_counter()
    try:
        result = accepted if run() else "ALTERED CONTENT ACCEPTED"
    except (RefusedError, DataError):
        result = "refused"
    except Exception as error:
        result = f"UNEXPECTED {type(error).__name__}"
    return result if time.perf_counter() - begun < LIMIT else f"TOO SLOW ({result})"


def tally(folder: Path, *, count: int, seed: int) -> dict[str, collections.Counter[str]]:
    """Results by kind of `count` cases."""
    genuine, chance = make_genuine(folder), random.Random(seed)
    results: dict[str, collections.Counter[str]] = {}
    for kind, share in zip(KINDS, _SHARES, strict=True):
        cases = range(max(1, round(count * share)))
        results[kind] = collections.Counter(try_case(genuine, kind, chance) for _ in cases)
    return results


def failures(results: dict[str, collections.Counter[str]]) -> list[str]:
    """Whatever is neither refused nor unchanged."""
    cases = [(kind, result, number) for kind, found in results.items() for result, number in found.items()]
    return [f"{kind}: {result}: {number}" for kind, result, number in cases if result not in _FINE]


def main() -> None:
    """Print the tally; exit status 1 where a case failed."""
    from common import save, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write results/fuzz.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = tally(Path(folder), count=options.count, seed=options.seed)
    rows = [[kind, result, number] for kind, found in results.items() for result, number in sorted(found.items())]
    print(table(["mutated", "result", "cases"], rows))
    if options.save:
        save("fuzz", {"count": options.count, "seed": options.seed, "results": results})
    if failed := failures(results):
        sys.exit("\n".join(["FAILED", *failed]))


if __name__ == "__main__":
    main()
