"""The ledger: what it lets through, what it refuses, and that it knows an acquisition again."""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veilray.errors import DataError, RefusedError, UsageError
from veilray.exchange.keys.secret import Secret
from veilray.exchange.ledger.ledger import Image, Ledger, Model, Override, Release
from veilray.exchange.ledger.likeness import mirrored

KEY = Secret(b"l" * 32)
RECEIVER, OTHER = "ab" * 32, "cd" * 32
CHIEF = Override(name="A. Chief", reason="consent of 3 May")


def _image(number: int = 0, **other: Any) -> Image:
    digest = hashlib.sha256(str(number).encode()).digest()
    values = {"sop_uid": f"1.2.{number}", "digest": digest, "likeness": digest, "geometry": "native", "std": 0.2}
    return Image(**{**values, "label": f"image-{number}", **other})


def _release(release_id: str, **other: Any) -> Release:
    values = {"receivers": (RECEIVER,), "mode": "noisy", "source": "secret", "noise_id": "n1", "mean": 0.1}
    return Release(**{"release_id": release_id, **values, **other})


LOOK = _image().likeness


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Ledger.create(tmp_path / "ledger.db", key=KEY)
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(file: Path) -> Iterator[Ledger]:
    with Ledger.open(file, key=KEY) as opened:
        opened.reserve(_release("first"), [_image(number) for number in range(3)])
        opened.commit("first")
        yield opened


def test_the_same_again_and_noisier_levels_pass_for_anyone(ledger: Ledger) -> None:
    ledger.reserve(_release("again"), [_image()])
    ledger.reserve(_release("to another", receivers=(OTHER,)), [_image()])
    ledger.reserve(_release("noisier"), [_image(std=0.3)])
    ledger.reserve(_release("model", mode="model-only"), [_image(std=0.0, geometry="any")])
    assert [exposure.std for exposure in ledger.exposures([_image()])] == [pytest.approx(0.2)]


@pytest.mark.parametrize(
    ("release", "image", "reason"),
    [
        ({}, {"std": 0.1}, "0.2 to 0.1"),
        ({"receivers": (OTHER,)}, {"std": 0.1}, "0.2 to 0.1"),
        ({}, {"geometry": "256x256"}, "another geometry"),
        ({"noise_id": "n2"}, {}, "0.2 to 0.141"),
        ({"source": "entropy", "noise_id": ""}, {}, "0.2 to 0.141"),
        ({"source": "seeded", "noise_id": ""}, {"std": 0.3}, "0.2 to 0.166"),
        ({"mode": "pairs"}, {}, "void"),
        ({"clip": False}, {}, "unclamped"),
        ({"mean": -0.5}, {}, "another mean"),
        ({"mean": -0.5}, {"std": 0.3}, "another mean"),
    ],
)
def test_what_weakens_an_earlier_release_is_refused_unless_someone_answers_for_it(
    ledger: Ledger, release: dict[str, Any], image: dict[str, Any], reason: str
) -> None:
    wanted, images = _release("second", **release), [_image(7, **image), _image(**image)]
    found = [(one.label, one.index, reason in one.reason) for one in ledger.examine(wanted, images)]
    assert found == [("image-0", 1, True)]
    with pytest.raises(RefusedError, match="refuses 1 of 2 images; image-0") as refusal:
        ledger.reserve(wanted, images)
    assert reason in str(refusal.value)
    assert [line.release.release_id for line in ledger.releases()] == ["first"]  # nothing of it stays
    assert ledger.exposures([_image(7)])[0].given == ()
    reserved = ledger.reserve(wanted, images, override=CHIEF)
    assert [one.label for one in reserved.objections] == ["image-0"]
    last = ledger.events()[-1]
    assert (last.release_id, last.what, last.name) == ("second", "overridden", "A. Chief")
    assert "consent of 3 May" in last.reason


def test_pairs_void_earlier_noisy_releases_and_say_which(ledger: Ledger) -> None:
    ledger.reserve(_release("again"), [_image(1)])
    found = ledger.reserve(_release("clean", mode="pairs"), [_image(0), _image(9)], override=CHIEF)
    assert found.voided == ("first",)
    assert [exposure.std for exposure in ledger.exposures([_image(0), _image(9), _image(1)])] == [
        0.0,
        0.0,
        pytest.approx(0.2),
    ]


@pytest.mark.parametrize(
    ("other", "known"),
    [
        ({"digest": b"x" * 32, "likeness": b"x" * 32}, True),  # the same UID
        ({"sop_uid": "", "likeness": b"x" * 32}, True),  # the same pixels, without or
        ({"sop_uid": "9.9", "likeness": b"x" * 32}, True),  # under another UID
        ({"sop_uid": "9.9", "digest": b"x" * 32}, True),  # a copy by its looks
        ({"sop_uid": "9.9", "digest": b"x" * 32, "likeness": b"x" * 32}, False),
        ({"sop_uid": "9.9", "digest": b"x" * 32, "likeness": bytes(255 - b for b in LOOK)}, True),  # inverted
        ({"sop_uid": "9.9", "digest": b"x" * 32, "likeness": mirrored(LOOK)[1]}, True),
        ({"sop_uid": "9.9", "digest": b"x" * 32, "likeness": bytes(255 - b for b in mirrored(LOOK)[3])}, True),
    ],
)
def test_an_acquisition_is_known_again(ledger: Ledger, other: dict[str, Any], known: bool) -> None:
    image = _image(**other, std=0.1)
    assert bool(ledger.examine(_release("second"), [image])) is known
    assert bool(ledger.exposures([image])[0].given) is known


@pytest.mark.parametrize(
    ("name", "sop_uid", "known"),
    [
        (("p1", "film"), "", True),
        (("p1", "other"), "", False),
        (("p2", "film"), "", False),
        (("p1f", "ilm"), "", False),
        (None, "", False),
        (("p1", "film"), "9.9", False),  # what has a UID is told by it
    ],
)
def test_where_there_is_no_uid_a_name_is_the_acquisition(
    ledger: Ledger, name: tuple[str, str] | None, sop_uid: str, known: bool
) -> None:
    ledger.reserve(_release("named"), [_image(8, sop_uid="", name=("p1", "film"))])
    crop = _image(9, sop_uid=sop_uid, name=name, std=0.3)  # other pixels, other looks
    assert bool(ledger.examine(_release("second"), [crop])) is known


def test_pairs_of_inverted_copies_void_what_left(ledger: Ledger) -> None:
    copies = [_image(0, sop_uid="", digest=b"x" * 32, likeness=bytes(255 - b for b in LOOK))]
    with pytest.raises(RefusedError, match="void"):
        ledger.reserve(_release("clean", mode="pairs"), copies)
    assert ledger.reserve(_release("clean", mode="pairs"), copies, override=CHIEF).voided == ("first",)


@pytest.mark.parametrize(("bits", "near"), [(0, True), (32, True), (33, False)])
def test_likenesses_count_up_to_the_threshold(ledger: Ledger, bits: int, near: bool) -> None:
    flips = np.zeros(256, dtype=np.uint8)
    flips[np.random.default_rng(5).permutation(256)[:bits]] = 1
    look = (np.unpackbits(np.frombuffer(_image().likeness, np.uint8)) ^ flips).astype(np.uint8)
    image = _image(sop_uid="", digest=b"x" * 32, likeness=np.packbits(look).tobytes())
    # Its pixels are others, so the noise would be independent of the first release's.
    assert bool(ledger.examine(_release("second"), [image])) is near


def test_a_copy_within_one_release_is_found(ledger: Ledger) -> None:
    copies = [_image(5), _image(5, sop_uid="", digest=b"y" * 32)]
    assert [one.label for one in ledger.examine(_release("second"), copies)] == ["image-5"]
    assert not ledger.examine(_release("second"), [_image(5), _image(5)])  # the very same gets the same noise
    assert ledger.examine(_release("second", source="entropy"), [_image(5), _image(5)])


def test_an_overridden_copy_counts_for_all_it_may_be(ledger: Ledger) -> None:
    copy = _image(0, sop_uid="1.2.1", digest=b"y" * 32)  # the looks of 0, the UID of 1
    ledger.reserve(_release("second"), [copy], override=CHIEF)
    exposed = [one.std for one in ledger.exposures([_image(0), _image(1), _image(2)])]
    assert exposed[0] == pytest.approx(0.2 / math.sqrt(2))
    assert exposed[1] <= exposed[0] * (1 + 1e-9)
    assert exposed[2] == pytest.approx(0.2)


def test_a_reservation_counts_until_it_is_settled(ledger: Ledger) -> None:
    weaker = [_image(4, std=0.1)]
    ledger.reserve(_release("killed", source="entropy"), [_image(4)])
    assert ledger.examine(_release("next"), weaker)
    ledger.settle("killed", left=False, name="B. Clerk", reason="the folder was never made")
    assert not ledger.examine(_release("next"), weaker)
    assert ledger.events()[-1].what == "settled as not released"
    ledger.reserve(_release("left"), [_image(4)])
    ledger.settle("left", left=True, name="B. Clerk", reason="it was sent")
    assert ledger.examine(_release("next"), weaker)


def test_an_abandoned_release_counts_no_more(ledger: Ledger) -> None:
    ledger.reserve(_release("none"), [_image(4)])
    ledger.abandon("none")
    assert ledger.exposures([_image(4)])[0].std == math.inf
    assert {line.release.release_id: line.status for line in ledger.releases()} == {
        "first": "committed",
        "none": "abandoned",
    }


MODEL = Model(weights_sha256="ab" * 32, training_digest="c0ffee" * 10, images=60, patients=41)


def test_a_model_is_a_release_that_exposes_no_image(ledger: Ledger, file: Path) -> None:
    before = ledger.exposures()
    ledger.reserve_model("bundle", MODEL, receivers=(RECEIVER, OTHER))
    line = ledger.releases()[-1]
    assert (line.status, line.images, line.release.mode) == ("reserved", 60, "model-only")
    assert line.release.receivers == (RECEIVER, OTHER)
    assert line.model is not None
    assert (line.model.weights_sha256, line.model.patients) == ("ab" * 32, 41)
    assert line.model.trained_on == ledger.data_tag("c0ffee" * 10) != ledger.data_tag("c0ffee" * 9)
    assert b"c0ffee" not in file.read_bytes()
    assert [each.model for each in ledger.releases()[:-1]] == [None]
    assert ledger.exposures() == before
    ledger.commit("bundle")
    assert [event.what for event in ledger.events() if event.release_id == "bundle"] == ["reserved", "committed"]
    with pytest.raises(UsageError, match="already"):
        ledger.reserve_model("first", MODEL, receivers=(RECEIVER,))
    assert len(ledger.releases()) == 2


def test_a_ledger_of_the_first_version_keeps_what_is_in_it(ledger: Ledger, file: Path) -> None:
    ledger.close()
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TABLE models")
        for column in ("mean", "digest"):
            connection.execute(f"ALTER TABLE releases DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    with Ledger.open(file, key=KEY) as opened:
        assert [(line.release.release_id, line.release.mean) for line in opened.releases()] == [("first", None)]
        assert "unknown" in opened.examine(_release("again"), [_image()])[0].reason
        opened.reserve_model("bundle", MODEL, receivers=())
    with Ledger.open(file, key=KEY) as again:
        assert [line.images for line in again.releases()] == [3, 60]
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(DataError, match="this version"):
        Ledger.open(file, key=KEY)


SEALING = {"digest": "ab" * 32, "receivers": {"centre": {RECEIVER}}}


def test_what_is_sealed_must_have_been_released_for_its_receivers(ledger: Ledger) -> None:
    ledger.reserve(_release("second", receivers=(RECEIVER, OTHER)), [_image()])
    with pytest.raises(RefusedError, match="as reserved"):
        ledger.admit("second", **SEALING)
    ledger.commit("second", digest="ab" * 32)
    assert ledger.admit("second", **SEALING) == ""
    ledger.reserve(_release("only"), [_image()])
    ledger.settle("only", left=True, name="B. Clerk", reason="its folder is whole", digest="ab" * 32)
    assert ledger.admit("only", **SEALING) == ""
    # The receiver has another card since.
    assert ledger.admit("second", digest="ab" * 32, receivers={"centre": {"ef" * 32, RECEIVER}}) == ""
    before = len(ledger.events())
    for name, change, reason in (
        ("unknown", {}, "does not know it"),
        ("second", {"digest": "cd" * 32}, "altered"),
        ("second", {"images": 2}, "2 images cannot be of it, which has 1"),
        ("first", {}, "does not know its content"),
        ("only", {"receivers": {"centre": {RECEIVER}, "clinic": {OTHER}}}, "not made for clinic"),
    ):
        with pytest.raises(RefusedError, match=f"{reason}.*--override-name"):
            ledger.admit(name, **{**SEALING, **change})
        assert len(ledger.events()) == before
    assert "does not know it" in ledger.admit("unknown", **SEALING, override=CHIEF)
    overridden, sealed = ledger.events()[-2:]
    assert (overridden.release_id, overridden.what, overridden.name) == ("unknown", "sealing overridden", "A. Chief")
    assert overridden.reason.startswith("for centre, though the ledger does not know it")
    assert overridden.reason.endswith("consent of 3 May")
    assert sealed.what == "sealed"


def test_misuse_is_told(ledger: Ledger) -> None:
    for wrong in ("first", "unknown"):
        for settle in (ledger.commit, ledger.abandon):
            with pytest.raises(UsageError, match="not reserved"):
                settle(wrong)
    with pytest.raises(UsageError, match="already"):
        ledger.reserve(_release("first"), [_image(8)])
    with pytest.raises(UsageError, match="name"):
        ledger.reserve(_release("second"), [_image()], override=Override(name=" ", reason="x"))
    with pytest.raises(UsageError, match="no images"):
        ledger.reserve(_release("second"), [])
    with pytest.raises(UsageError, match="positive std"):
        ledger.reserve(_release("second"), [_image(std=0.0)])
    with pytest.raises(UsageError, match="has a mean"):
        ledger.reserve(_release("second", mean=None), [_image()])
    with pytest.raises(UsageError, match="name of its secret"):
        ledger.reserve(_release("second", noise_id=""), [_image()])


def test_the_file_gives_away_neither_uids_nor_digests_nor_likenesses(ledger: Ledger, file: Path) -> None:
    data = file.read_bytes()
    image = _image()
    for clear in (b"1.2.0", image.digest, image.likeness, hashlib.sha256(b"1.2.0").digest(), b"image-0"):
        assert clear not in data
    assert file.stat().st_mode & 0o777 == 0o600


def test_it_is_one_with_its_key(file: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="other keys"):
        Ledger.open(file, key=Secret(b"m" * 32))
    with pytest.raises(UsageError, match="never replaced"):
        Ledger.create(file, key=KEY)
    with pytest.raises(DataError, match="missing"):
        Ledger.open(tmp_path / "none.db", key=KEY)
    file.chmod(0o640)
    with pytest.raises(RefusedError, match="chmod"):
        Ledger.open(file, key=KEY)


def test_damaged_and_foreign_files_are_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE owner (tag BLOB)")
    connection.close()
    foreign.chmod(0o600)
    for data in (b"", b"no database" * 100, whole[:700], bytes(len(whole)), foreign.read_bytes()):
        file.write_bytes(data)
        with pytest.raises(DataError, match=r"ledger\.db"):
            Ledger.open(file, key=KEY)


def test_a_large_release_is_examined_in_one_go(file: Path) -> None:
    images = [_image(number) for number in range(1500)]
    with Ledger.open(file, key=KEY) as ledger:
        ledger.reserve(_release("large"), images)
        assert len(ledger.examine(_release("second", source="entropy"), images)) == 1500
        assert len(ledger.exposures()) == 1500
