"""Import, evaluate and denoise over ranks give, byte for byte, what one process gives; a failure ends all of them."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.command_line import SMALL, Finished, done, make_cohort, veilray_process
from tests.distributed.harness import finish, start_ranks, veilray_ranks
from tests.images.dicom_files import build, save
from tests.training.small import write_images

from veilray.cohort.cohort import Cohort
from veilray.cohort.parcel import pack, unpack
from veilray.cohort.prepare import Prepared, Rejected, prepare
from veilray.images.sources import SourceItem

pytestmark = pytest.mark.slow


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _both(*words: object, ranks: int = 2) -> list[Finished]:
    results = veilray_ranks(*words, ranks=ranks)
    for result in results:
        assert result.status == 0, result.err
    assert not any(result.out for result in results[1:])
    return results


def _in_own_folders(folder: Path, words: list[str]) -> list[Finished]:
    """Run a command on two ranks, each in the folder of its number, as machines without a shared disk would."""
    script = f"import os; os.chdir(os.path.join({str(folder)!r}, os.environ['RANK']))"
    script += "; from veilray.cli.main import run; run()"
    return finish(start_ranks([[sys.executable, "-c", script, *words]] * 2))


def _one_message(results: list[Finished]) -> str:
    """What the ranks said, which must be one line, the lead's."""
    said = [line for result in results for line in result.lines if line.startswith("veilray:")]
    assert len(said) == 1, [result.err for result in results]
    assert said[0] in results[0].lines
    return said[0]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 usable images, a copy, a clash of names, a file that is none, and an archive."""
    folder = tmp_path_factory.mktemp("sources") / "png"
    write_images(folder, patients=4)
    (folder / "broken.png").write_bytes(b"no image")
    shutil.copy(folder / "00000000_000.png", folder / "00000009_000.png")
    (folder / "more").mkdir()
    levels = np.random.default_rng(4).integers(0, 65536, (40, 30), dtype=np.uint16)
    Image.fromarray(levels).save(folder / "more" / "00000001_000.png")
    Image.fromarray(levels.T.copy()).save(folder / "more" / "00000005_000.png")
    with zipfile.ZipFile(folder / "some.zip", "w") as archive:
        archive.write(folder / "00000001_001.png", "in/00000006_000.png")
        archive.writestr("in/empty.png", b"")
    return folder


@pytest.mark.parametrize(("ranks", "size"), [(2, "32"), (3, "native")])
def test_an_import_over_ranks_is_the_import_of_one(sources: Path, tmp_path: Path, ranks: int, size: str) -> None:
    options = ["--size", size, "--shares", "60/20/20", "--workers", 1]
    alone = done("import", sources, "--out", tmp_path / "alone", *options)
    lead, *_ = _both("import", sources, "--out", tmp_path / "shared", *options, ranks=ranks)
    assert _files(tmp_path / "shared") == _files(tmp_path / "alone")
    assert lead.out == alone.out.replace("alone", "shared")
    assert Cohort.open(tmp_path / "shared").digest in lead.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "shared"]


def test_machines_of_unlike_sizes_make_the_same_cohort(sources: Path, tmp_path: Path) -> None:
    done("import", sources, "--out", tmp_path / "alone", "--size", 32, "--workers", 1)
    script = "import os, sys; from veilray.cli.main import run\n"
    script += "sys.argv += ['--workers', str(1 + int(os.environ['RANK']))]; run()"
    words = ["import", str(sources), "--out", str(tmp_path / "shared"), "--size", "32"]
    results = finish(start_ranks([[sys.executable, "-c", script, *words]] * 2))
    assert [result.status for result in results] == [0, 0], results[0].err
    assert _files(tmp_path / "shared") == _files(tmp_path / "alone")


def test_a_rank_that_sees_other_files_ends_the_import_and_nothing_is_left(sources: Path, tmp_path: Path) -> None:
    # Each rank lists its own folder `in`, as machines without a shared disk would.
    for rank in range(2):
        shutil.copytree(sources, tmp_path / str(rank) / "in")
    (tmp_path / "1" / "in" / "extra.png").write_bytes(b"")
    results = _in_own_folders(tmp_path, ["import", "in", "--out", str(tmp_path / "out"), "--workers", "1"])
    assert [result.status for result in results] == [3, 3]
    assert "give every rank the same sources" in _one_message(results)
    assert not list(tmp_path.glob("*out*"))


def test_what_the_lead_cannot_write_ends_all_ranks_with_one_message(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    results = veilray_ranks("import", sources, "--out", tmp_path / "out", "--workers", 1)
    assert [result.status for result in results] == [2, 2]
    assert [line for result in results for line in result.lines] == [
        f"veilray: {tmp_path / 'out'} already exists; name a new folder or remove that one"
    ]


def test_a_rank_that_is_killed_ends_the_others_and_nothing_is_left(sources: Path, tmp_path: Path) -> None:
    script = (
        "import os, sys; from veilray.cohort import build; from veilray.cli.main import run\n"
        "class Die:\n"
        "    def __call__(self, item, **options): os._exit(137)\n"
        "if os.environ['RANK'] == '1': build.prepare = Die()\n"
        "run()"
    )
    words = ["import", str(sources), "--out", str(tmp_path / "out"), "--size", "32", "--workers", "1"]
    results = finish(start_ranks([[sys.executable, "-c", script, *words]] * 2))
    assert [result.status for result in results] == [1, 137]
    assert "another rank has ended" in _one_message(results)
    assert not list(tmp_path.iterdir())


def test_a_prepared_image_survives_its_journey(sources: Path, tmp_path: Path) -> None:
    dicom = tmp_path / "one.dcm"
    dicom.write_bytes(save(build(np.arange(600, dtype=np.uint16).reshape(20, 30), bits=12, PatientAge="058Y")))
    for path in (sources / "more" / "00000001_000.png", sources / "00000000_000.png", dicom):
        sent = prepare(SourceItem(name=path.name, path=path), size=None, modalities=None)
        assert isinstance(sent, Prepared), sent
        header, content = pack(sent)
        came = unpack(json.loads(json.dumps(header)), content)
        assert isinstance(came, Prepared)
        assert came.levels.dtype == sent.levels.dtype
        np.testing.assert_array_equal(came.levels, sent.levels)
        assert repr(came.radiograph) == repr(sent.radiograph)
        assert (came.height, came.width, came.sha256) == (sent.height, sent.width, sent.sha256)
    gone = Rejected(source="a", reason="b")
    assert unpack(*pack(gone)) == gone


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of 22 test images in `cohort`, and `run`, trained on it."""
    folder = make_cohort(tmp_path_factory.mktemp("trained"), patients=50).parent
    done("train", "default", "--data", folder / "cohort", "--out", folder / "run", "--no-evaluate", *SMALL)
    return folder


def test_an_evaluation_over_ranks_gives_the_scores_of_one(trained: Path, tmp_path: Path) -> None:
    for name in ("alone", "shared"):
        shutil.copytree(trained / "run", tmp_path / name)
    options = ["--data", trained / "cohort", "--no-download", "--device", "cpu"]
    alone = veilray_process("evaluate", tmp_path / "alone", *options)
    assert alone.status == 0, alone.err
    lead, *_ = _both("evaluate", tmp_path / "shared", *options)
    scores, shared = (tmp_path / name / "evaluation" / "per_image.csv" for name in ("alone", "shared"))
    assert shared.read_bytes() == scores.read_bytes()
    assert len(scores.read_text().splitlines()) > 2 * 8 * 2  # more than one batch a rank
    summaries = [json.loads(path.with_name("summary.json").read_text()) for path in (scores, shared)]
    for summary in summaries:
        for timing in ("seconds_per_image", "core_seconds_per_image"):
            assert summary.pop(timing)["model"] > 0  # each run's own
    assert summaries[0] == summaries[1]
    assert lead.out == alone.out.replace("alone", "shared")
    assert (tmp_path / "shared" / "report.html").is_file()


@pytest.mark.parametrize("command", ["evaluate", "denoise"])
def test_ranks_with_other_weights_are_told(trained: Path, sources: Path, tmp_path: Path, command: str) -> None:
    for rank in range(2):
        shutil.copytree(trained / "run", tmp_path / str(rank) / "run")
    weights = tmp_path / "1" / "run" / "checkpoints" / "best.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    words = {
        "evaluate": ["run", "--data", str(trained / "cohort"), "--no-download", "--device", "cpu"],
        "denoise": [str(sources), "--model", "run", "--out", str(tmp_path / "out"), "--device", "cpu"],
    }
    results = _in_own_folders(tmp_path, [command, *words[command]])
    assert [result.status for result in results] == [3, 3]
    assert "rank 1 finds other weights" in _one_message(results)
    assert not list(tmp_path.rglob("per_image.csv"))
    assert not (tmp_path / "out").exists()


def test_a_file_that_one_rank_does_not_see_is_told(trained: Path, sources: Path, tmp_path: Path) -> None:
    for rank in range(2):
        shutil.copytree(sources, tmp_path / str(rank) / "in")
    for path in (tmp_path / "1" / "in").glob("*_001.png"):
        path.unlink()
    words = ["denoise", "in", "--out", str(tmp_path / "out"), "--model", str(trained / "run"), "--device", "cpu"]
    results = _in_own_folders(tmp_path, words)
    assert [result.status for result in results] == [3, 3]
    assert "give every rank the same sources" in _one_message(results)


def _denoise(folder: Path, *inputs: object, out: str, ranks: int) -> Finished:
    words = ["denoise", *inputs, "--out", folder / out, "--model", folder.parent / "run", "--device", "cpu"]
    if ranks == 1:
        alone = veilray_process(*words)
        assert alone.status == 0, alone.err
        return alone
    return _both(*words, ranks=ranks)[0]


def test_denoising_over_ranks_makes_the_files_of_one(trained: Path, sources: Path) -> None:
    folder = trained / "denoised"
    folder.mkdir()
    done("obfuscate", trained / "cohort", "--out", folder / "release", "--std", 0.2)
    inputs = [sources, folder / "release"]
    alone = _denoise(folder, *inputs, out="alone", ranks=1)
    lead = _denoise(folder, *inputs, out="shared", ranks=2)
    one, two = (_files(folder / name) for name in ("alone", "shared"))
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name] and name != "denoised.json"] == []
    records = [json.loads(files["denoised.json"]) for files in (one, two)]
    for record in records:
        for batch in record["batches"]:
            batch.pop("began")
    assert records[0] == records[1]
    assert lead.out == alone.out.replace("alone", "shared")
    # The clash, the copy and the broken file are told of alike, in whatever order.
    told = [{line for line in one.lines if line.startswith("left out")} for one in (alone, lead)]
    assert len(told[0]) >= 3
    assert {line.replace("alone", "shared") for line in told[0]} == told[1]
    again = veilray_ranks("denoise", sources, "--out", folder / "shared", "--model", trained / "run", "--device", "cpu")
    assert [result.status for result in again] == [3, 3]  # nothing is replaced, so nothing was done
    assert "nothing was denoised" in _one_message(again)


def test_a_lead_that_can_no_longer_report_ends_all_ranks(trained: Path, sources: Path, tmp_path: Path) -> None:
    # The lead hands results on one by one while the others still work.
    script = (
        "from veilray.cli import progress\n"
        "def gone(self, n=1):\n"
        "    raise OSError(5, 'Input/output error')\n"
        "progress._Lines.advance = gone\n"
        "from veilray.cli.main import run\n"
        "run()"
    )
    words = ["denoise", sources, "--out", tmp_path / "out", "--model", trained / "run", "--device", "cpu"]
    results = finish(start_ranks([[sys.executable, "-c", script, *map(str, words)]] * 2))
    assert [result.status for result in results] == [1, 1]
    assert "Input/output error" in _one_message(results)
    for path in (tmp_path / "out").glob("*.png"):
        with Image.open(path) as image:
            image.load()  # whole


def test_dicom_out_says_that_it_is_for_one_process(sources: Path, tmp_path: Path) -> None:
    results = veilray_ranks("denoise", sources, "--out", tmp_path / "out", "--model", "x", "--dicom", "--keys", "k")
    assert [result.status for result in results] == [2, 2]
    assert "without torchrun" in _one_message(results)
