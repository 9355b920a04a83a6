"""Sealed bundles: what comes out is what went in, age and tar agree, and everything else is refused whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.exchange.sites import (
    Sites,
    copied_sites,
    decrypted,
    denoised_folder,
    encrypted,
    make_sites,
    resigned,
    sealed,
    tar_of,
)

from veilray.errors import BundleError, DataError, UsageError
from veilray.exchange.keys.folder import KeyKind
from veilray.exchange.sealing.bundle import BundleSink, BundleSource, measure
from veilray.exchange.sealing.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_PARTS,
    MAX_RECEIVERS,
    Manifest,
    Part,
    decode_manifest,
    encode_manifest,
)
from veilray.exchange.sealing.open_ import open_bundle
from veilray.exchange.sealing.seal import seal
from veilray.exchange.sealing.sequences import Sequences


@pytest.fixture(scope="module")
def new_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_sites(folder)
    return folder


@pytest.fixture
def sites(new_keys: Path, tmp_path: Path) -> Sites:
    return copied_sites(new_keys, tmp_path / "keys")


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def refusal(bundle: Path, out: Path, sites: Sites) -> BundleError:
    """The refusal of a bundle that must leave nothing behind, and a line in the log."""
    before = {path.name for path in out.parent.iterdir()}
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle, out, keys=sites.one)
    assert caught.value.exit_status == 4
    assert {path.name for path in out.parent.iterdir()} == before
    line = json.loads((sites.one.path / "exchange/log.jsonl").read_text().splitlines()[-1])
    assert (line["event"], line["reason"]) == ("refused", caught.value.reason)
    assert bundle.name not in str(line)
    return caught.value


def test_what_was_sealed_comes_out(tmp_path: Path, sites: Sites) -> None:
    source = denoised_folder(tmp_path / "source")
    done = seal(source, tmp_path / "a.veil", keys=sites.two, receivers=[sites.one.card])
    opened = open_bundle(tmp_path / "a.veil", tmp_path / "out", keys=sites.one)
    assert content(tmp_path / "out") == content(source)
    assert (opened.sender, opened.manifest) == ("two", done.manifest)
    assert {file.name for file in tmp_path.iterdir()} == {"keys", "source", "a.veil", "out"}


def test_what_is_opened_is_its_owners_alone(tmp_path: Path, sites: Sites) -> None:
    mask = os.umask(0o000)
    try:
        open_bundle(sealed(tmp_path, sites), tmp_path / "out", keys=sites.one)
    finally:
        os.umask(mask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o600}


def test_several_receivers_open_it_and_the_sender_does_not(tmp_path: Path, sites: Sites) -> None:
    source = denoised_folder(tmp_path / "source")
    both = [sites.one.card, sites.stranger.card]
    seal(source, tmp_path / "a.veil", keys=sites.two, receivers=both)
    for keys in (sites.one, sites.stranger):
        open_bundle(tmp_path / "a.veil", tmp_path / keys.card.name, keys=keys)
        assert content(tmp_path / keys.card.name) == content(source)
    with pytest.raises(BundleError, match="not sealed for these keys"):
        open_bundle(tmp_path / "a.veil", tmp_path / "out", keys=sites.two)


@pytest.mark.skipif(not shutil.which("age") or not shutil.which("openssl"), reason="needs age and openssl")
def test_age_tar_and_openssl_open_and_check_it_too(tmp_path: Path, sites: Sites) -> None:
    bundle = sealed(tmp_path, sites)
    identity = tmp_path / "identity"
    identity.write_text(f"{sites.one.age_identity()}\n")
    out = tmp_path / "by-hand"
    out.mkdir()
    subprocess.run(f"age -d -i {identity} {bundle} | tar x -C {out}", shell=True, check=True, timeout=60)
    manifest = json.loads((out / "manifest.json").read_text())
    for part in manifest["parts"]:
        assert hashlib.sha256((out / part["name"]).read_bytes()).hexdigest() == part["sha256"]
    # RFC 8410: the public key as SubjectPublicKeyInfo is this prefix and the 32 bytes of the card.
    key = bytes.fromhex("302a300506032b6570032100" + sites.two.card.signing_key)
    (tmp_path / "key.der").write_bytes(key)
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", tmp_path / "key.der", "-rawin"]
    files = ["-in", out / "manifest.json", "-sigfile", out / "manifest.sig"]
    subprocess.run([*verify, *files], check=True, timeout=60, capture_output=True)


def test_opening_again_in_place_changes_nothing(tmp_path: Path, sites: Sites) -> None:
    bundle = sealed(tmp_path, sites)
    assert not open_bundle(bundle, tmp_path / "out", keys=sites.one).in_place
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    open_bundle(sealed(tmp_path, sites, name="b", seed=2), tmp_path / "newer", keys=sites.one)
    assert open_bundle(bundle, tmp_path / "out", keys=sites.one).in_place  # though a newer one was opened
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == stamps
    next((tmp_path / "out").glob("*.png")).write_bytes(b"changed")
    with pytest.raises(UsageError, match="is not this bundle"):
        open_bundle(bundle, tmp_path / "out", keys=sites.one)


def test_an_older_bundle_is_refused_and_the_newest_is_not(tmp_path: Path, sites: Sites) -> None:
    older, newer = sealed(tmp_path, sites), sealed(tmp_path, sites, name="b", seed=2)
    open_bundle(newer, tmp_path / "newer", keys=sites.one)
    assert refusal(older, tmp_path / "older", sites).reason == "replay"
    open_bundle(newer, tmp_path / "again", keys=sites.one)
    same = decode_manifest(encode_manifest(open_bundle(newer, tmp_path / "again", keys=sites.one).manifest))
    files = resigned(newer, sites, bundle_id="00" * 16, sequence=same.sequence)
    other = encrypted(tar_of(files), tmp_path / "other.veil", receiver=sites.one)
    assert refusal(other, tmp_path / "other", sites).reason == "replay"


def test_a_bundle_cut_anywhere_is_refused(tmp_path: Path, sites: Sites) -> None:
    whole = sealed(tmp_path, sites).read_bytes()
    cut = tmp_path / "cut.veil"
    for length in [0, 1, 21, 22, 100, 200, *range(230, len(whole), len(whole) // 12), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        assert refusal(cut, tmp_path / "out", sites).reason in ("format", "encryption", "key")


@pytest.mark.parametrize("place", [5, 60, 150, 190, 250, 600, 2000, -1])
def test_a_flipped_bit_is_refused(tmp_path: Path, sites: Sites, place: int) -> None:
    data = bytearray(sealed(tmp_path, sites).read_bytes())
    data[place] ^= 0x10
    (tmp_path / "bad.veil").write_bytes(data)
    refusal(tmp_path / "bad.veil", tmp_path / "out", sites)


def test_appended_bytes_are_refused(tmp_path: Path, sites: Sites) -> None:
    bundle = sealed(tmp_path, sites)
    bundle.write_bytes(bundle.read_bytes() + b"x")
    assert refusal(bundle, tmp_path / "out", sites).reason == "encryption"


def test_an_endless_header_is_refused_at_once(tmp_path: Path, sites: Sites) -> None:
    bundle = sealed(tmp_path, sites)
    head, _, rest = bundle.read_bytes().partition(b"\n--- ")
    stanza = b"\n-> X25519 " + b"A" * 43 + b"\n" + b"A" * 43
    bundle.write_bytes(head + 20_000 * stanza + b"\n--- " + rest)  # the age library alone takes minutes over it
    assert refusal(bundle, tmp_path / "out", sites).reason == "format"


def test_other_keys_do_not_open_it(tmp_path: Path, sites: Sites) -> None:
    source = denoised_folder(tmp_path / "source")
    seal(source, tmp_path / "a.veil", keys=sites.two, receivers=[sites.stranger.card])
    assert refusal(tmp_path / "a.veil", tmp_path / "out", sites).reason == "key"


def test_a_sender_that_is_not_pinned_is_refused(tmp_path: Path, sites: Sites) -> None:
    source = denoised_folder(tmp_path / "source")
    seal(source, tmp_path / "a.veil", keys=sites.stranger, receivers=[sites.one.card])
    error = refusal(tmp_path / "a.veil", tmp_path / "out", sites)
    assert error.reason == "sender"
    assert sites.stranger.card.fingerprint[:16] in str(error)


def test_a_forged_signature_is_refused(tmp_path: Path, sites: Sites) -> None:
    files = resigned(sealed(tmp_path, sites), sites)
    files[1] = ("manifest.sig", sites.stranger.signing_key().sign(files[0][1]))
    forged = encrypted(tar_of(files), tmp_path / "forged.veil", receiver=sites.one)
    assert refusal(forged, tmp_path / "out", sites).reason == "signature"


def test_a_bundle_that_was_forwarded_is_refused(tmp_path: Path, sites: Sites) -> None:
    """The stranger, its true receiver, passes it on encrypted for site one: the signature still holds."""
    source = denoised_folder(tmp_path / "source")
    seal(source, tmp_path / "a.veil", keys=sites.two, receivers=[sites.stranger.card])
    plain = decrypted(tmp_path / "a.veil", sites.stranger)
    forwarded = encrypted(plain, tmp_path / "forwarded.veil", receiver=sites.one)
    assert refusal(forwarded, tmp_path / "out", sites).reason == "receiver"


@pytest.mark.parametrize("kinds", [["receiving"], ["signing"], ["receiving", "signing", "receiving"]])
def test_bundles_of_before_a_rotation_open_after_it(tmp_path: Path, sites: Sites, kinds: list[KeyKind]) -> None:
    bundle = sealed(tmp_path, sites)
    for kind in kinds:
        sites.one.rotate(kind)
    open_bundle(bundle, tmp_path / "out", keys=sites.one)
    assert (tmp_path / "out").is_dir()


def test_bundles_of_before_their_senders_rotation_open_if_it_signs_as_before(tmp_path: Path, sites: Sites) -> None:
    first, second = sealed(tmp_path, sites), sealed(tmp_path, sites, name="b")
    sites.two.rotate("receiving")
    third = sealed(tmp_path, sites, name="c")
    assert refusal(third, tmp_path / "out", sites).reason == "sender"  # not pinned yet
    sites.one.pin(sites.two.card, replace=True)
    assert open_bundle(second, tmp_path / "out", keys=sites.one).sender == "two"
    assert refusal(first, tmp_path / "older", sites).reason == "replay"
    open_bundle(third, tmp_path / "third", keys=sites.one)
    assert refusal(sealed_before(second), tmp_path / "older", sites).reason == "replay"


def sealed_before(bundle: Path) -> Path:
    """A copy of a bundle that was opened, as an attacker keeps it."""
    return Path(shutil.copy(bundle, bundle.with_name("kept.veil")))


def test_what_a_replaced_key_signed_is_refused_and_the_reason_said(tmp_path: Path, sites: Sites) -> None:
    bundle = sealed(tmp_path, sites)
    sites.two.rotate("signing")
    sites.one.pin(sites.two.card, replace=True)
    error = refusal(bundle, tmp_path / "out", sites)
    assert error.reason == "replaced"
    assert "ask two to seal it again" in str(error)


def test_parts_that_are_not_those_of_the_manifest_are_refused(tmp_path: Path, sites: Sites) -> None:
    files = resigned(sealed(tmp_path, sites), sites)
    head, parts = files[:2], files[2:]
    swapped = [(parts[1][0], parts[2][1]), *parts[2:]]
    cases = {
        "reordered": [*head, parts[0], parts[2], parts[1], *parts[3:]],
        "missing": [*head, *parts[:-1]],
        "more": [*head, *parts, ("more", b"")],
        "swapped": [*head, parts[0], *swapped],
        "twice": [*head, *parts, parts[-1]],
        "unsigned": parts,
        "turned": [head[1], head[0], *parts],
    }
    for name, case in cases.items():
        bundle = encrypted(tar_of(case), tmp_path / f"{name}.veil", receiver=sites.one)
        assert refusal(bundle, tmp_path / "out", sites).reason in ("parts", "truncated", "trailing", "format"), name


@pytest.mark.parametrize("ending", [b"", bytes(512), bytes(1025), bytes(10240), b"x" * 1024])
def test_a_stream_with_another_end_is_refused(tmp_path: Path, sites: Sites, ending: bytes) -> None:
    plain = decrypted(sealed(tmp_path, sites), sites.one)
    bundle = encrypted(plain[:-1024] + ending, tmp_path / "end.veil", receiver=sites.one)
    refusal(bundle, tmp_path / "out", sites)


@pytest.mark.parametrize(
    "name",
    ["../x.png", "/tmp/x.png", "a/b.png", "..", ".", "", "manifest.json", "x\0.png", "index.csv", "A" * 32 + ".png"],
)
def test_names_that_could_lead_elsewhere_are_refused_even_when_signed(tmp_path: Path, sites: Sites, name: str) -> None:
    part = {"name": name, "size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    head = resigned(sealed(tmp_path, sites), sites, parts=[part])[:2]
    plain = tar_of(head)[:-1024] + tar_of([("0.png", b"x")])
    assert (
        refusal(encrypted(plain, tmp_path / "n.veil", receiver=sites.one), tmp_path / "o", sites).reason == "manifest"
    )


def test_a_link_in_place_of_a_part_is_refused(tmp_path: Path, sites: Sites) -> None:
    files = resigned(sealed(tmp_path, sites), sites)
    link = tarfile.TarInfo(files[2][0])
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    plain = tar_of(files[:2])[:-1024] + link.tobuf(format=tarfile.GNU_FORMAT) + tar_of(files[3:])
    assert refusal(encrypted(plain, tmp_path / "l.veil", receiver=sites.one), tmp_path / "out", sites).reason == "parts"


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"format": "veilray-transfer"},
        {"kind": "cohort"},
        {"sequence": 0},
        {"sequence": 1.5},
        {"sequence": 2**60},
        {"receivers": []},
        {"parts": []},
        {"more": 1},
        {"sealed_at": "yesterday"},
        {"sender": "../../x"},
    ],
)
def test_a_manifest_of_another_shape_is_refused_even_when_signed(
    tmp_path: Path, sites: Sites, changes: dict[str, object]
) -> None:
    bundle = encrypted(
        tar_of(resigned(sealed(tmp_path, sites), sites, **changes)), tmp_path / "m.veil", receiver=sites.one
    )
    error = refusal(bundle, tmp_path / "out", sites)
    assert error.reason == "manifest"
    assert "../../x" not in str(error)


def test_a_file_that_changes_while_it_is_sealed_stops_the_sealing(tmp_path: Path, sites: Sites) -> None:
    source = denoised_folder(tmp_path / "source")
    last = sorted(source.glob("*.png"))[-1]

    def change(count: int) -> None:
        if not last.read_bytes().endswith(b"more"):
            last.write_bytes(last.read_bytes() + b"more")

    with pytest.raises(DataError, match="changed while it was being sealed"):
        seal(source, tmp_path / "a.veil", keys=sites.two, receivers=[sites.one.card], advance=change)
    assert not (tmp_path / "a.veil").exists()
    assert not list(tmp_path.glob(".*"))


def test_an_existing_bundle_is_not_replaced_and_somebody_must_receive_it(tmp_path: Path, sites: Sites) -> None:
    bundle = sealed(tmp_path, sites)
    with pytest.raises(UsageError, match="already exists"):
        seal(tmp_path / "a-source", bundle, keys=sites.two, receivers=[sites.one.card])
    with pytest.raises(UsageError, match="receivers"):
        seal(tmp_path / "a-source", tmp_path / "b.veil", keys=sites.two, receivers=[])
    with pytest.raises(UsageError, match="missing"):
        open_bundle(tmp_path / "none.veil", tmp_path / "out", keys=sites.one)


def test_interrupted_opening_leaves_nothing(tmp_path: Path, sites: Sites) -> None:
    bundle = sealed(tmp_path, sites)

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_bundle(bundle, tmp_path / "out", keys=sites.one, advance=stop)
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "out").exists()
    open_bundle(bundle, tmp_path / "out", keys=sites.one)


def test_an_opening_that_is_killed_can_be_repeated(tmp_path: Path, sites: Sites) -> None:
    bundle = sealed(tmp_path, sites)
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom veilray.exchange.keys.folder import KeyFolder\n"
        "from veilray.exchange.sealing import open_, sequences\n"
        "kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "record = sequences.Sequences.record\n"
        "sequences.Sequences.record = lambda self, *about: (record(self, *about), kill())\n"
        "open_.open_bundle(Path(sys.argv[1]), Path(sys.argv[2]), keys=KeyFolder.open(Path(sys.argv[3])))\n"
    )
    words = [sys.executable, "-c", script, bundle, tmp_path / "out", sites.one.path]
    assert subprocess.run(words, timeout=120).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    open_bundle(bundle, tmp_path / "out", keys=sites.one)
    assert content(tmp_path / "out") == content(tmp_path / "a-source")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_size(tmp_path: Path) -> None:
    """A part of 96 MB through both halves of the stream; a sparse file, so that only the stream is large."""
    name, size = f"{'0' * 32}.png", 96 * 2**20
    with (tmp_path / name).open("wb") as stream:
        os.truncate(stream.fileno(), size)
    part = measure(tmp_path, name)
    assert part.size == size
    manifest = Manifest.model_validate_json(
        json.dumps(
            {
                "bundle_id": "0" * 32,
                "sender": "0" * 64,
                "receivers": ["0" * 64],
                "sequence": 1,
                "sealed_at": "2026-01-01T00:00:00Z",
                "kind": "denoised",
                "parts": [part.model_dump()],
            }
        )
    )
    signed = encode_manifest(manifest)
    source = BundleSource(tmp_path, (part,), signed=signed, signature=bytes(64), advance=lambda _: None)
    sink = BundleSink(None, accept=lambda data, signature: decode_manifest(data), advance=lambda _: None)
    tracemalloc.start()
    try:
        while block := source.read(65_536):
            sink.write(block)
        sink.finish()
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_manifest_takes_the_images_of_the_largest_collections() -> None:
    parts = tuple(
        Part(name=f"{number:032x}.png", size=100_000_000 + number, sha256="ab" * 32) for number in range(MAX_PARTS)
    )
    manifest = Manifest(
        bundle_id="0" * 32,
        sender="1" * 64,
        receivers=("2" * 64,) * MAX_RECEIVERS,
        sequence=2**52,
        sealed_at=datetime.now(UTC),
        kind="denoised",
        parts=parts,
    )
    signed = encode_manifest(manifest)
    assert len(parts) > 112_121
    assert len(signed) < MAX_MANIFEST_BYTES
    assert decode_manifest(signed).parts[-1] == parts[-1]


def test_sequences_grow_whatever_happens_to_the_clock_or_the_state(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences, receivers = Sequences(sites.one.path), ("ab" * 32, "cd" * 32)
    first = sequences.next_for(receivers)
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert sequences.next_for(receivers[:1]) == first + 1
    assert sequences.next_for(receivers) == first + 2
    assert sequences.next_for(receivers[1:]) == first + 3
    (sites.one.path / "exchange/sequences.json").unlink()  # as after a restored backup, an hour later
    monkeypatch.setattr("time.time", lambda: first + 3600.0)
    assert sequences.next_for(receivers) > first + 3


def test_names_of_kinds_do_not_mix(sites: Sites, tmp_path: Path) -> None:
    manifest = open_bundle(sealed(tmp_path, sites), tmp_path / "out", keys=sites.one).manifest
    with pytest.raises(BundleError):
        decode_manifest(replace_kind(manifest, "release"))


def replace_kind(manifest: Manifest, kind: str) -> bytes:
    return json.dumps(json.loads(encode_manifest(manifest)) | {"kind": kind}).encode()


def test_secrets_are_nowhere_in_what_is_said(tmp_path: Path, sites: Sites) -> None:
    secret = str(sites.one.age_identity())
    said = []
    for name, data in {
        "a.veil": b"",
        "b.veil": b"age-encryption.org/v1\n",
        "c.veil": sealed(tmp_path, sites, name="s").read_bytes()[:-9],
    }.items():
        (tmp_path / name).write_bytes(data)
        said.append(str(refusal(tmp_path / name, tmp_path / "out", sites)))
    said.append((sites.one.path / "exchange/log.jsonl").read_text())
    assert secret not in " ".join(said)
    assert "AGE-SECRET" not in " ".join(said)
    assert (sites.one.path / "exchange/log.jsonl").stat().st_mode & 0o777 == 0o600
