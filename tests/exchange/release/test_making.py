"""Making a release: equal with equal keys, remembered before it exists, refused where it would weaken what left."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from veilray.cohort.build import import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.cohort.obfuscate import describe
from veilray.cohort.planned import DRAWN, planned_files, planned_index
from veilray.cohort.records import CohortRecord, with_digest
from veilray.cohort.release import Release
from veilray.cohort.split import SPLITS, Shares, assign
from veilray.errors import CohortError, RefusedError, UsageError, VeilrayError
from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.ledger.records import Override
from veilray.exchange.release import making
from veilray.exchange.release.making import MadeRelease, Parties, Request, make_release, plan_release
from veilray.exchange.release.originals import read_originals
from veilray.exchange.release.pseudonyms import Pseudonyms
from veilray.exchange.release.review import Blanks
from veilray.obfuscation.config import NoiseConfig
from veilray.obfuscation.secret import secret_field

NOISE = NoiseConfig(mean=0.1, std=0.2)
CHIEF = Override(name="A. Chief", reason="consent of 3 May")


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """12 images of 6 patients, 20 x 24 brought to 16 x 16."""
    folder = tmp_path / "in"
    folder.mkdir()
    lines = ["image_id,patient_id,issuer,view,sex,age,spacing,date,study_uid"]
    for number in range(12):
        patient = number // 2
        levels = np.random.default_rng(number).integers(0, 256, (20, 24), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"i{number}.png")
        lines.append(f"i{number},p{patient},H,PA,F,64,0.2,2020-02-{10 + number},1.2.{number // 2}")
    (tmp_path / "patients.csv").write_text("\n".join(lines))
    import_radiographs([folder], tmp_path / "cohort", size=16, workers=1, patients=tmp_path / "patients.csv")
    return Cohort.open(tmp_path / "cohort")


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    """Site One's keys, with the cards of two receivers pinned."""
    one = KeyFolder.create(tmp_path / "keys" / "one", name="one")
    for name in ("two", "three"):
        one.pin(KeyFolder.create(tmp_path / "keys" / name, name=name, role="site-two").card)
    return one


def _request(keys: KeyFolder, *, receiver: str = "two", override: Override | None = None, **more: object) -> Request:
    parties = Parties(keys=keys, receiver=keys.peer(receiver), override=override)
    return Request(**{"noise": NOISE, "parties": parties, **more})  # type: ignore[arg-type]


def _make(cohort: Cohort, request: Request, out: Path) -> MadeRelease:
    return make_release(plan_release(cohort, request), out)


def _index(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_noise_and_the_names_are_those_of_the_keys(cohort: Cohort, keys: KeyFolder, tmp_path: Path) -> None:
    noise = NoiseConfig(mean=0.1, std=0.2, clip=False)
    made = _make(cohort, _request(keys, noise=noise), tmp_path / "release")
    release = Release.open(made.written.path)
    names = Pseudonyms(keys.pseudonym_key(keys.peer("two").fingerprint).reveal())
    assert list(release.image_ids) == sorted(names.image(name) for name in cohort.image_ids)
    rows = {name: row for row, name in enumerate(release.image_ids)}
    for original in read_originals(cohort):
        row = rows[names.image(original.image_id)]
        assert release.patient_id(row) == names.patient("H", original.patient_id.partition("^")[0])
        field = secret_field(
            secret=keys.noise_secret().reveal(),
            digest=original.digest,
            geometry="16x16 bicubic with antialiasing",
            std=0.2,
            shape=(16, 16),
        )
        clean = cohort.gather(np.array([original.row]))[0]
        # Within half a step of the 16-bit scale.
        step = release.record.quantisation["uint16"].step
        np.testing.assert_allclose(release.gather_noisy(np.array([row]))[0], clean + 0.1 + field, atol=0.51 * step)
    assert release.record.noise_source == "secret"
    assert not release.record.subtractable


def test_the_same_again_is_the_same_and_another_receiver_gets_other_names(
    cohort: Cohort, keys: KeyFolder, tmp_path: Path
) -> None:
    first, again = (_make(cohort, _request(keys), tmp_path / name).written for name in ("a", "b"))
    assert first.record.digest == again.record.digest
    assert first.record.release_id != again.record.release_id
    other = Release.open(_make(cohort, _request(keys, receiver="three"), tmp_path / "c").written.path)
    one = Release.open(first.path)
    assert not set(one.image_ids) & set(other.image_ids)
    assert not set(one.patient_ids) & set(other.patient_ids)
    with keys.ledger() as ledger:
        assert [line.status for line in ledger.releases()] == ["committed"] * 3
        assert {exposure.std for exposure in ledger.exposures()} == {0.2}


def test_sets_hang_on_the_pseudonyms_and_no_id_can_be_tested_against_them(
    cohort: Cohort, keys: KeyFolder, tmp_path: Path
) -> None:
    record = cohort.record.model_dump(mode="json")
    record["preprocessing"]["shares"] = "40/30/30"
    record = with_digest(CohortRecord.model_validate(record))
    (cohort.path / "cohort.json").write_text(record.model_dump_json())
    cohort = Cohort.open(cohort.path)
    shares = Shares(train=40.0, validation=30.0, test=30.0)
    for parties in ({}, {"parties": None}):
        made = _make(cohort, _request(keys, **parties), tmp_path / f"release{len(parties)}")
        for row in _index(made.written.path):
            assert row["split"] == assign(row["patient_id"], seed=0, shares=shares)
        counts = Counter(row["split"] for row in _index(made.written.path))
        assert made.written.record.images == {split: counts[split] for split in ("train", "validation", "test")}
    # Of pairs both sites keep the sets, or one would train on what the other tests on.
    pairs = _request(keys, pairs=True, consent_clean_images=True, override=CHIEF)
    names = Pseudonyms(keys.pseudonym_key(keys.receiver_id(keys.peer("two"))).reveal())
    theirs = {row["image_id"]: row["split"] for row in _index(_make(cohort, pairs, tmp_path / "pairs").written.path)}
    for row, name in enumerate(cohort.image_ids):
        assert theirs[names.image(name)] == SPLITS[cohort.split_codes[row]]


def test_a_receiver_that_rotates_its_keys_keeps_its_pseudonyms(cohort: Cohort, keys: KeyFolder, tmp_path: Path) -> None:
    before = _make(cohort, _request(keys), tmp_path / "before").written
    two = KeyFolder.open(tmp_path / "keys/two")
    two.rotate("signing")
    keys.pin(two.card, replace=True)
    after = _make(cohort, _request(keys), tmp_path / "after").written
    assert list(Release.open(after.path).image_ids) == list(Release.open(before.path).image_ids)
    assert list(Release.open(after.path).patient_ids) == list(Release.open(before.path).patient_ids)


def test_coded_fields_leave_as_asked(cohort: Cohort, keys: KeyFolder, tmp_path: Path) -> None:
    fields = ("view", "spacing", "sex", "age", "days", "study")
    made = _make(cohort, _request(keys, fields=fields), tmp_path / "release")
    rows = _index(made.written.path)
    assert made.written.record.fields == fields
    # 0.2 mm over 20 rows and 24 columns, spread over 16.
    said = {(row["view"], row["sex"], row["age"], row["spacing"]) for row in rows}
    assert said == {("PA", "F", "60-69", "0.25 x 0.30")}
    assert sorted(row["days"] for row in rows) == ["0"] * 6 + ["1"] * 6
    names = Pseudonyms(keys.pseudonym_key(keys.receiver_id(keys.peer("two"))).reveal())
    assert Counter(row["study"] for row in rows) == {names.study(f"1.2.{patient}"): 2 for patient in range(6)}
    assert len({(row["patient_id"], row["study"]) for row in rows}) == 6
    plain = _index(_make(cohort, Request(noise=NOISE, fields=()), tmp_path / "plain").written.path)
    assert set(plain[0]) == {"image_id", "patient_id", "split", "height", "width", "pixels", "row"}


def test_a_less_noisy_release_is_refused_and_leaves_nothing(cohort: Cohort, keys: KeyFolder, tmp_path: Path) -> None:
    _make(cohort, _request(keys), tmp_path / "a")
    weaker = NoiseConfig(mean=0.1, std=0.1)
    plan = plan_release(cohort, _request(keys, noise=weaker))
    assert len(plan.objections()) == 12
    with pytest.raises(RefusedError, match=r"line \d+ of the cohort's index\.csv"):
        make_release(plan, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert len(list((cohort.path / "releases").glob("*.csv"))) == 1
    override = Override(name="Dr. A", reason="study 7")
    made = _make(cohort, _request(keys, noise=weaker, override=override), tmp_path / "b")
    assert made.overridden == 12
    with keys.ledger() as ledger:
        assert ("Dr. A", "12 images: study 7") in [(event.name, event.reason) for event in ledger.events()]


def test_blanking_after_a_release_is_another_geometry(cohort: Cohort, keys: KeyFolder, tmp_path: Path) -> None:
    _make(cohort, _request(keys), tmp_path / "a")
    with pytest.raises(RefusedError, match="another geometry"):
        _make(cohort, _request(keys, blanks=Blanks(everywhere=((0, 0, 3, 3),))), tmp_path / "b")


def test_what_the_ledger_refuses_can_stay_behind(cohort: Cohort, keys: KeyFolder, tmp_path: Path) -> None:
    blank = Blanks(by_image={"i3": [(0, 0, 3, 3)]})
    _make(cohort, _request(keys, blanks=blank), tmp_path / "a")
    made = _make(cohort, _request(keys, leave_out_refused=True), tmp_path / "b")
    assert len(Release.open(made.written.path)) == 11


def test_pairs_ask_for_consent_and_void_what_left(cohort: Cohort, keys: KeyFolder, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="--consent-clean-images"):
        plan_release(cohort, Request(noise=NOISE, pairs=True))
    with pytest.raises(UsageError, match="goes with --pairs"):
        plan_release(cohort, Request(noise=NOISE, consent_clean_images=True))
    first = _make(cohort, _request(keys), tmp_path / "a").written
    override = Override(name="Dr. A", reason="study 7")
    request = _request(keys, pairs=True, consent_clean_images=True, override=override)
    made = _make(cohort, request, tmp_path / "b")
    assert made.voided == (first.record.release_id,)
    assert "no image privacy" in made.written.record.statement
    with keys.ledger() as ledger:
        assert {exposure.std for exposure in ledger.exposures()} == {0.0}


def test_a_failure_abandons_and_a_named_folder_counts(
    cohort: Cohort, keys: KeyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def status() -> list[str]:
        with keys.ledger() as ledger:
            return [line.status for line in ledger.releases()]

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_release(plan_release(cohort, _request(keys)), tmp_path / "a", advance=interrupt)
    assert status() == ["abandoned"]
    assert not (tmp_path / "a").exists()
    write = making.write_release

    def fail_late(*arguments: object, **options: object) -> None:
        write(*arguments, **options)  # type: ignore[arg-type]
        raise OSError("the disk went away")

    monkeypatch.setattr(making, "write_release", fail_late)
    with pytest.raises(OSError, match="went away"):
        _make(cohort, _request(keys), tmp_path / "a")
    assert status() == ["abandoned", "reserved"]


def test_an_existing_folder_is_refused_before_the_ledger_hears_of_it(
    cohort: Cohort, keys: KeyFolder, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match="already exists"):
        _make(cohort, _request(keys), tmp_path / "a")
    with keys.ledger() as ledger:
        assert ledger.releases() == []


@pytest.mark.parametrize(
    ("noise", "message"),
    [(NoiseConfig(std=0.25), "0.1, 0.2, 0.3"), (NoiseConfig(std=(0.1, 0.2)), "one level"), (NOISE, None)],
)
def test_levels_of_secret_noise(cohort: Cohort, keys: KeyFolder, noise: NoiseConfig, message: str | None) -> None:
    if message is None:
        plan_release(cohort, _request(keys, noise=noise))
        return
    with pytest.raises(UsageError, match=message):
        plan_release(cohort, _request(keys, noise=noise))
    plan_release(cohort, _request(keys, noise=noise, seed=1))  # for research any level will do


def test_nothing_left_to_release(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veilray.exchange.release.review.find_text", lambda _: [(0, 0, 1, 1)])
    monkeypatch.setattr("veilray.exchange.release.review._native", lambda box, _: box)
    with pytest.raises(CohortError, match=r"no image .* may leave: .*12 wait for review"):
        _make(cohort, Request(noise=NOISE), tmp_path / "a")
    assert (cohort.path / "quarantine.csv").is_file()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("std", [0.2, (0.1, 0.3)])
def test_the_dry_run_tells_what_is_then_written(
    cohort: Cohort, tmp_path: Path, pairs: bool, std: float | tuple[float, float]
) -> None:
    noise = NoiseConfig(mean=0.1, std=std)
    request = Request(noise=noise, pairs=pairs, consent_clean_images=pairs)
    before = sorted(path.name for path in cohort.path.rglob("*"))
    plan = plan_release(cohort, request)
    assert sorted(path.name for path in cohort.path.rglob("*")) == before
    record = describe(
        cohort,
        noise=noise,
        source=plan.source.kind,
        contents=plan.contents,
        pairs=pairs,
        release_id=plan.ledger_release.release_id,
    )
    files = planned_files(cohort, plan.contents, noise, record)
    lines = list(planned_index(cohort, plan.contents, noise, pairs=pairs))
    written = make_release(plan, tmp_path / "release").written
    there = {path.name: path.stat().st_size for path in written.path.iterdir()}
    assert set(files) | {"release.json"} == set(there)
    assert {name: size for name, (_, size) in files.items() if size} == {
        name: there[name] for name, (_, size) in files.items() if size
    }
    index = _index(written.path)
    for line, made in zip(lines, index, strict=True):
        assert {key: made[key] if value == DRAWN else value for key, value in line.items()} == made
    same = {"files": {}, "digest": ""}
    assert written.record.model_copy(update=same) == record.model_copy(update=same)


def test_without_keys_there_is_no_memory(cohort: Cohort, tmp_path: Path) -> None:
    first, again = (_make(cohort, Request(noise=NOISE), tmp_path / name).written for name in ("a", "b"))
    assert first.record.noise_source == "entropy"
    assert not set(Release.open(first.path).patient_ids) & set(Release.open(again.path).patient_ids)
    assert plan_release(cohort, Request(noise=NOISE)).objections() == []
    with pytest.raises(VeilrayError):
        _make(cohort, Request(noise=NOISE), tmp_path / "a")


def test_another_crop_under_the_same_name_is_refused(cohort: Cohort, keys: KeyFolder, tmp_path: Path) -> None:
    _make(cohort, _request(keys), tmp_path / "first")
    folder = tmp_path / "cropped"
    folder.mkdir()
    for path in (tmp_path / "in").glob("i[01].png"):
        with Image.open(path) as image:
            image.crop((8, 6, 24, 20)).save(folder / path.name)
    patients = tmp_path / "patients.csv"
    for name, options, refused in (("a", {"patients": patients}, 2), ("b", {}, 0)):
        import_radiographs([folder], tmp_path / name, size=16, workers=1, **options)  # type: ignore[arg-type]
        plan = plan_release(Cohort.open(tmp_path / name), _request(keys))
        # Without patients nobody knows whose i0 is.
        assert len(plan.objections()) == refused
