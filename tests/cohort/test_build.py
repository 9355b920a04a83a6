"""Import: the right pixels, patients and sets, every refusal with its reason, and all of it or nothing."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.command_line import NO_BYTECODE
from tests.images.dicom_files import build, save

from veilray.cohort.build import INDEX_COLUMNS, REPORT_FILE, ImportReport, import_radiographs
from veilray.cohort.cohort import Cohort
from veilray.cohort.records import IdFrom
from veilray.cohort.split import SPLITS, Shares, assign
from veilray.errors import CohortError, DataError, UsageError, VeilrayError
from veilray.images.radiograph import IntensityMap, to_pixels

Draw = Callable[..., npt.NDArray[np.generic]]
Write = Callable[..., Path]


def _import(sources: list[Path], out: Path, **options: object) -> ImportReport:
    return import_radiographs(sources, out, **({"size": None, "workers": 1} | options))  # type: ignore[arg-type]


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _split_of(out: Path) -> dict[str, str]:
    return {row["image_id"]: row["split"] for row in _table(out / "index.csv")}


def _other_patient(patient: str) -> str:
    """A patient whom the hash puts into another set."""
    where = assign(patient, seed=0, shares=Shares())
    return next(name for name in map(str, range(1000)) if assign(name, seed=0, shares=Shares()) != where)


def test_pixels_come_back_as_they_were(radiographs: Path, cohort: Cohort) -> None:
    assert len(cohort) == 60
    for row in range(60):
        levels = np.asarray(Image.open(radiographs / f"{cohort.image_id(row)}.png"))
        np.testing.assert_array_equal(cohort.gather(np.array([row]))[0], to_pixels(levels))


def test_resampled_as_pillow_does(tmp_path: Path, draw: Draw, write: Write) -> None:
    path = write(tmp_path / "in" / "a.png", draw(1, 40, 60))
    _import([path], tmp_path / "out", size=16)
    expected = Image.open(path).resize((16, 16), Image.Resampling.BICUBIC)
    row = Cohort.open(tmp_path / "out").gather(np.array([0]))[0]
    np.testing.assert_array_equal(row, np.asarray(expected, np.float64).__truediv__(255).astype(np.float32))


def test_sizes_and_depths_have_files_of_their_own(mixed: Cohort) -> None:
    names = {"pixels-16x16-uint8.npy", "pixels-16x16-uint16.npy", "pixels-12x20-uint8.npy"}
    assert set(mixed.pixels.names) == names
    assert mixed.sizes == [(12, 20), (16, 16)]


def test_the_index_says_the_way_back(tmp_path: Path, draw: Draw, write: Write) -> None:
    write(tmp_path / "in" / "00000007_000.png", draw(1, 12, 20, np.uint16))
    _import([tmp_path / "in"], tmp_path / "out", size=16)
    (row,) = _table(tmp_path / "out" / "index.csv")
    assert row["patient_id"] == "00000007"
    assert (row["height"], row["width"], row["bit_depth"]) == ("12", "20", "16")
    assert (row["low"], row["high"], row["inverted"]) == ("0", "65535", "False")
    assert row["source"] == "in/00000007_000.png"


def test_the_index_holds_the_whole_intensity_map() -> None:
    names = {field.name for field in fields(IntensityMap)} - {"padding"}
    assert names | {"padding_first", "padding_last"} <= set(INDEX_COLUMNS)


@pytest.mark.slow
def test_cohort_does_not_depend_on_workers_or_on_where_the_sources_lie(radiographs: Path, tmp_path: Path) -> None:
    one = _import([radiographs], tmp_path / "one", workers=1)
    moved = tmp_path / "elsewhere" / "radiographs"
    shutil.copytree(radiographs, moved)
    two = _import([moved], tmp_path / "two", workers=2)
    assert one.record.digest == two.record.digest


@pytest.mark.slow
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_more_images_in_any_order_never_move_a_patient(
    radiographs: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    files = sorted(radiographs.iterdir())
    chosen = data.draw(st.lists(st.sampled_from(files), unique=True, min_size=1))
    folder = tmp_path_factory.mktemp("import")
    _import(chosen, folder / "some")
    _import(files, folder / "all")
    everything = _split_of(folder / "all")
    assert _split_of(folder / "some") == {path.stem: everything[path.stem] for path in chosen}


def test_no_patient_is_in_two_sets(cohort: Cohort) -> None:
    sets: dict[str, set[int]] = {}
    for patient, code in zip(cohort.patient_ids, cohort.split_codes.tolist(), strict=True):
        sets.setdefault(patient, set()).add(code)
    assert len(sets) == 20
    assert {len(codes) for codes in sets.values()} == {1}


@pytest.mark.slow
def test_archives_are_read_in_place(radiographs: Path, cohort: Cohort, tmp_path: Path) -> None:
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        for path in sorted(radiographs.iterdir()):
            stream.write(path, f"inner/{path.name}")
    _import([archive], tmp_path / "zipped", workers=2)
    zipped = Cohort.open(tmp_path / "zipped")
    np.testing.assert_array_equal(zipped.gather(np.arange(60)), cohort.gather(np.arange(60)))


def test_unknown_patients_count_one_an_image_and_are_said(tmp_path: Path, draw: Draw, write: Write) -> None:
    for number in range(3):
        write(tmp_path / "in" / f"x{number}.png", draw(number))
    write(tmp_path / "in" / "00000001_000.png", draw(9))
    report = _import([tmp_path / "in"], tmp_path / "out")
    assert report.record.patients_unknown == 3
    assert sum(report.record.patients.values()) == 4
    assert [note for note in report.notes if "patient of 3 images is unknown" in note]


def test_patients_from_a_file(tmp_path: Path, draw: Draw, write: Write) -> None:
    for number in range(3):
        write(tmp_path / "in" / f"x{number}.png", draw(number))
    (tmp_path / "patients.csv").write_text("image_id,patient_id\nx0,p\nx2,p\n")
    report = _import([tmp_path / "in"], tmp_path / "out", patients=tmp_path / "patients.csv")
    assert list(Cohort.open(tmp_path / "out").patient_ids) == ["p", "x1", "p"]
    assert report.record.patients_unknown == 1
    (tmp_path / "patients.csv").write_text("image_id,patient_id\nx0.png,p\n")
    with pytest.raises(UsageError, match="lists none of the images"):
        _import([tmp_path / "in"], tmp_path / "other", patients=tmp_path / "patients.csv")


def test_identical_pixels_share_a_split(tmp_path: Path, draw: Draw, write: Write) -> None:
    """The later one stays out where its patient is in another set, and comes in where it is not."""
    first, other = "00000001", _other_patient("00000001")
    patients = {"a": first, "b": other, "c": first, "d": other}
    levels = draw(1)
    for image in "abc":
        write(tmp_path / "in" / f"{image}.png", levels)
    write(tmp_path / "in" / "d.png", draw(2))
    lines = [f"{image},{patient}\n" for image, patient in patients.items()]
    (tmp_path / "p.csv").write_text("image_id,patient_id\n" + "".join(lines))
    report = _import([tmp_path / "in"], tmp_path / "out", patients=tmp_path / "p.csv")
    assert set(_split_of(tmp_path / "out")) == {"a", "c", "d"}
    (row,) = _table(tmp_path / "out" / REPORT_FILE)
    assert (row["image_id"], row["outcome"]) == ("b", "left out")
    assert "a.png" in row["reason"]
    assert report.record.left_out == 1


def test_the_same_picture_in_16_bits_is_a_duplicate(tmp_path: Path, draw: Draw, write: Write) -> None:
    levels = draw(1)
    write(tmp_path / "in" / "a.png", levels)
    write(tmp_path / "in" / "b.png", levels.astype(np.uint16) * np.uint16(257))
    write(tmp_path / "in" / "c.png", levels.reshape(8, 32))
    _import([tmp_path / "in"], tmp_path / "out", shares=Shares(train=100, validation=0, test=0))
    a, b, c = (row["sha256"] for row in _table(tmp_path / "out" / "index.csv"))
    assert a == b
    assert a != c


def test_an_image_id_comes_in_once(tmp_path: Path, draw: Draw, write: Write) -> None:
    write(tmp_path / "in" / "a" / "x.png", draw(1))
    write(tmp_path / "in" / "b" / "x.png", draw(2))
    _import([tmp_path / "in"], tmp_path / "out")
    (row,) = _table(tmp_path / "out" / REPORT_FILE)
    assert row["source"].endswith("b/x.png")
    assert "a/x.png" in row["reason"]
    assert "--id-from path" in row["reason"]


def test_names_from_paths_keep_trees_of_equal_file_names_apart(tmp_path: Path, draw: Draw, write: Write) -> None:
    for number, patient in enumerate("ab"):
        write(tmp_path / "in" / patient / "study1" / "view1_frontal.png", draw(number))
    (tmp_path / "p.csv").write_text("image_id,patient_id\nin/a/study1/view1_frontal,a\nin/b/study1/view1_frontal,b\n")
    report = _import([tmp_path / "in"], tmp_path / "out", id_from="path", patients=tmp_path / "p.csv")
    cohort = Cohort.open(tmp_path / "out")
    assert list(cohort.image_ids) == ["in/a/study1/view1_frontal", "in/b/study1/view1_frontal"]
    assert list(cohort.patient_ids) == ["a", "b"]
    assert (report.record.id_from, report.record.left_out) == ("path", 0)


def test_the_same_picture_under_the_same_name_asks_for_no_other_names(tmp_path: Path, draw: Draw, write: Write) -> None:
    for folder in "ab":
        write(tmp_path / "in" / folder / "x.png", draw(1))
    report = _import([tmp_path / "in"], tmp_path / "out")
    (row,) = _table(tmp_path / "out" / REPORT_FILE)
    assert "--id-from" not in row["reason"]
    assert not any("--id-from" in note for note in report.notes)


def test_images_of_a_split_file_that_did_not_come_in_are_named(tmp_path: Path, draw: Draw, write: Write) -> None:
    for number, name in enumerate("ab"):
        write(tmp_path / "in" / f"{name}.png", draw(number))
    split = tmp_path / "split.csv"
    for absent, told in (
        ("x", "1 images of {} did not come in: x."),
        ("wxyz", "4 images of {} did not come in: w, x, y,"),
    ):
        split.write_text("image_id,split\na,train\nb,test\n" + "".join(f"{name},train\n" for name in absent))
        report = _import([tmp_path / "in"], tmp_path / absent, split_file=split)
        assert any(note.startswith(told.format(split)) for note in report.notes)


@pytest.mark.parametrize("id_from", ["stem", "path"])
def test_files_that_differ_in_their_ending_alone_are_to_be_renamed(
    id_from: IdFrom, tmp_path: Path, draw: Draw, write: Write
) -> None:
    write(tmp_path / "in" / "rgb.jpg", draw(1))
    write(tmp_path / "in" / "rgb.png", draw(2))
    report = _import([tmp_path / "in"], tmp_path / "out", id_from=id_from)
    (row,) = _table(tmp_path / "out" / REPORT_FILE)
    assert "rename one of the two files" in row["reason"]
    assert not any("--id-from" in text for text in [row["reason"], *report.notes])


def _save_dicom(path: Path, seed: int, **elements: object) -> None:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)
    path.write_bytes(save(build(pixels, **elements)))


def test_a_sop_instance_uid_comes_in_once_whatever_names_images(tmp_path: Path) -> None:
    for seed, name in enumerate(["a.dcm", "b.dcm"]):
        _save_dicom(tmp_path / "in" / name, seed, SOPInstanceUID="1.2.3")
    report = _import([tmp_path / "in"], tmp_path / "out", id_from="path")
    (row,) = _table(tmp_path / "out" / REPORT_FILE)
    assert (row["image_id"], row["outcome"]) == ("1.2.3", "left out")
    assert "SOP Instance UID" in row["reason"]
    assert sum(report.record.images.values()) == 1


def test_the_index_keeps_what_a_header_says_of_the_exposure(tmp_path: Path) -> None:
    said = {"PatientSex": "F", "PatientAge": "070Y", "ImagerPixelSpacing": ["0.143", "0.15"], "StudyDate": "20200229"}
    more = {"StudyInstanceUID": "1.2", "IssuerOfPatientID": "H", "BurnedInAnnotation": "NO", "SOPInstanceUID": "1.2.3"}
    _save_dicom(tmp_path / "in" / "a.dcm", 1, **said, **more)
    (tmp_path / "p.csv").write_text("image_id,patient_id,issuer,sex\n1.2.3,other,X,M\n")
    _import([tmp_path / "in"], tmp_path / "out", patients=tmp_path / "p.csv")
    (row,) = _table(tmp_path / "out" / "index.csv")
    assert (row["patient_id"], row["sex"], row["age"], row["view"]) == ("other^^^X", "M", "70", "PA")
    assert (row["spacing_row"], row["spacing_column"], row["spacing_from"]) == ("0.143", "0.15", "ImagerPixelSpacing")
    assert (row["burned_in"], row["date"], row["issuer"], row["study_uid"]) == ("NO", "2020-02-29", "X", "1.2")
    assert row["sop_instance_uid"] == row["image_id"] == "1.2.3"


def test_a_cohort_of_the_first_schema_opens(cohort: Cohort) -> None:
    path = cohort.path / "cohort.json"
    record = json.loads(path.read_text())
    del record["id_from"]
    path.write_text(json.dumps(record | {"schema_version": 1}))
    assert Cohort.open(cohort.path).record.id_from == "stem"


@pytest.mark.slow
def test_rejected_files_are_listed_with_their_reasons(tmp_path: Path, draw: Draw, write: Write) -> None:
    good = write(tmp_path / "in" / "good.png", draw(1))
    (tmp_path / "in" / "cut.png").write_bytes(good.read_bytes()[:100])
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    (tmp_path / "in" / "two\nlines.png").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "in" / "z.zip", "w") as stream:
        stream.writestr("../climbs.png", good.read_bytes())
    report = _import([tmp_path / "in"], tmp_path / "out", workers=2)
    assert sum(report.record.images.values()) == 1
    assert report.record.rejected == 4
    rows = _table(tmp_path / "out" / REPORT_FILE)
    assert [row["outcome"] for row in rows] == ["rejected"] * 4
    assert all(row["reason"] for row in rows)
    assert len((tmp_path / "out" / REPORT_FILE).read_text().splitlines()) == 5


def test_nothing_usable_is_bad_data_and_leaves_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="hold no files"):
        _import([tmp_path / "in"], tmp_path / "out")
    (tmp_path / "in" / "a.txt").write_text("no")
    with pytest.raises(DataError, match=r"none of the 1 files .*a\.txt: it is"):
        _import([tmp_path / "in"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", f"out.{REPORT_FILE}"]
    with pytest.raises(UsageError, match="does not exist"):
        _import([tmp_path / "nowhere"], tmp_path / "out")


def test_a_split_file_decides(radiographs: Path, tmp_path: Path) -> None:
    lines = [f"{patient:08}_{k:03},{SPLITS[patient % 3]}\n" for patient in range(19) for k in range(3)]
    (tmp_path / "split.csv").write_text("image_id,split\n" + "".join(lines) + "99999999_000,train\n")
    report = _import([radiographs], tmp_path / "out", split_file=tmp_path / "split.csv")
    splits = _split_of(tmp_path / "out")
    assert all(split == SPLITS[int(image[:8]) % 3] for image, split in splits.items())
    assert len(splits) == 57
    reasons = {row["image_id"]: row["reason"] for row in _table(tmp_path / "out" / REPORT_FILE)}
    assert set(reasons) == {f"00000019_{k:03}" for k in range(3)}
    assert any(note.startswith("1 images of") for note in report.notes)
    recorded = report.record.preprocessing.split_file
    assert recorded is not None
    assert recorded.sha256 == hashlib.sha256((tmp_path / "split.csv").read_bytes()).hexdigest()


def test_a_split_file_that_tears_patients_apart_is_refused(radiographs: Path, tmp_path: Path) -> None:
    lines = [f"{patient:08}_{k:03},{SPLITS[k]}\n" for patient in range(2) for k in range(3)]
    (tmp_path / "split.csv").write_text("image_id,split\n" + "".join(lines))
    with pytest.raises(CohortError, match="2 patients into more than one set"):
        _import([radiographs], tmp_path / "out", split_file=tmp_path / "split.csv")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_never_touched(radiographs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        _import([radiographs], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("size", [0, -256, 7, 100_000])
def test_sizes_out_of_reason(radiographs: Path, tmp_path: Path, size: int) -> None:
    with pytest.raises(UsageError, match="size"):
        _import([radiographs], tmp_path / "out", size=size)


@pytest.mark.slow
def test_an_interruption_leaves_nothing(radiographs: Path, tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _import([radiographs], tmp_path / "out", workers=2, advance=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["radiographs"]


_SCRIPT = """
import sys, time
from pathlib import Path
from veilray.cohort.build import import_radiographs
from veilray.errors import VeilrayError

def advance(n):
    print("one", flush=True)
    time.sleep(float(sys.argv[3]))

if __name__ == "__main__":
    try:
        import_radiographs([sys.argv[1]], Path(sys.argv[2]), size=None, workers=int(sys.argv[4]), advance=advance)
    except VeilrayError as error:
        print(f"error: {error}")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program that imports argv[1] into argv[2], waits argv[3] seconds after each image, with argv[4] workers."""
    path = tmp_path / "program" / "import_slowly.py"
    path.parent.mkdir()
    path.write_text(_SCRIPT)
    return path


@pytest.mark.slow
def test_kill_9_leaves_no_cohort_and_no_workers(radiographs: Path, tmp_path: Path, script: Path) -> None:
    out = tmp_path / "made" / "out"
    command = [sys.executable, str(script), str(radiographs), str(out), "0.5", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = _children(process.pid)
        assert len(children) >= 2
        process.kill()
    assert not out.exists()
    deadline = time.monotonic() + 20
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if _alive(child)]


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_nothing(radiographs: Path, tmp_path: Path, script: Path) -> None:
    out = tmp_path / "made" / "out"
    command = [sys.executable, str(script), str(radiographs), str(out), "0", "1"]

    def limit() -> None:
        # No file may grow beyond 4 KiB: writing fails as it does on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    environment = {**os.environ, **NO_BYTECODE}
    ended = subprocess.run(command, preexec_fn=limit, env=environment, capture_output=True, text=True, check=False)
    assert "error: cannot write" in ended.stdout
    assert "free some space" in ended.stdout
    assert list(out.parent.iterdir()) == []


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_killed_worker_ends_the_import_with_a_clear_error(radiographs: Path, tmp_path: Path) -> None:
    def kill_a_worker(_: int) -> None:
        for child in _children(os.getpid()):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # those killed before are gone
                if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                    os.kill(child, signal.SIGKILL)

    with pytest.raises(VeilrayError, match="worker process ended"):
        _import([radiographs], tmp_path / "out", workers=2, advance=kill_a_worker)
    assert not (tmp_path / "out").exists()


@pytest.mark.real
def test_real_dicom_and_png_of_one_radiograph_are_one(real_data: Path, tmp_path: Path) -> None:
    sources = [
        real_data / "nih1024/00000002_000.png",
        real_data / "dicom/nhsx_dx_chest_nih_mono2_8bit_implicit.dcm",
    ]
    _import(sources, tmp_path / "out", shares=Shares(train=100, validation=0, test=0))
    first, second = _table(tmp_path / "out" / "index.csv")
    assert first["sha256"] == second["sha256"]
    assert (first["format"], second["format"]) == ("png", "dicom")
