"""Finding images in folders and archives: everything is named, nothing is unpacked to disk, nothing is lost."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from veilray.errors import UsageError
from veilray.images import sources
from veilray.images.sources import SourceItem, count_files, find_images

CONTENT = {"b/00000002_000.png": b"two" * 5000, "a/00000001_000.png": b"one", "00000003_000.png": b"three" * 99}


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    return (write_zip if path.suffix == ".zip" else write_tar)(path, members)


def only(path: Path) -> SourceItem:
    (item,) = find_images([path])
    return item


ARCHIVES = ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "A.TAR.GZ"]


def test_folders_are_sorted_and_walked_to_the_bottom(tmp_path: Path) -> None:
    for name in CONTENT:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for hidden in (".DS_Store", ".git/config"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    names = ["00000003_000.png", "a/00000001_000.png", "b/00000002_000.png", "notes.txt"]
    items = list(find_images([tmp_path]))
    assert [item.name for item in items] == [str(tmp_path / name) for name in names]
    assert all(item.path == Path(item.name) and item.data is None and item.rejection is None for item in items)


def test_a_file_named_outright_is_taken_even_when_hidden(tmp_path: Path) -> None:
    path = tmp_path / ".hidden.png"
    path.write_bytes(b"x")
    assert only(path) == SourceItem(name=str(path), path=path)


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_read_in_place(tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / name, {**CONTENT, "._a.png": b"x", "__MACOSX/a.png": b"x", "./c/d.png": b"dots"})
    expected = {**CONTENT, "./c/d.png": b"dots"}
    assert {item.name: item.data for item in find_images([tmp_path])} == {
        f"{path}:{member}": data for member, data in expected.items()
    }
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.slow
def test_members_come_one_at_a_time(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", {f"{index}.png": os.urandom(1 << 20) for index in range(8)})
    sizes = []
    for item in find_images([path]):
        sizes.append(len(item.data or b""))
        assert sizes[-1] == 1 << 20
    assert len(sizes) == 8


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "a/../../b.png", "..\\a.png", "C:\\a.png", "\\a.png"])
def test_members_that_climb_out_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = write_archive(tmp_path / kind, {name: b"x", "good.png": b"fine"})
    bad, good = find_images([path])
    assert bad.data is None
    assert "leads out" in str(bad.rejection)
    assert good.data == b"fine"


@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
@pytest.mark.parametrize("name", ["inner.zip", "inner.tar.gz", "inner.TGZ", "inner.7z"])
def test_nested_archives_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    assert "inside an archive" in str(only(write_archive(tmp_path / kind, {name: b"x"})).rejection)


def test_links_and_devices_in_archives_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("s.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("d.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert ["link or a device" in str(item.rejection) for item in find_images([tmp_path / "a.tar"])] == [True] * 3
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        link = zipfile.ZipInfo("s.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
    assert "link or a device" in str(only(tmp_path / "a.zip").rejection)


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
def test_large_members_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veilray.images.limits.MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 1000)
    bad, good = find_images([write_archive(tmp_path / kind, {"bomb.png": bytes(50_000), "good.png": bytes(1000)})])
    assert bad.data is None
    assert "larger than" in str(bad.rejection)
    assert good.data == bytes(1000)


def test_a_zip_that_lies_about_a_size_is_not_believed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"bomb.png": bytes(50_000)})
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = (10).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    assert "damaged" in str(only(path).rejection)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))
    assert "encrypted" in str(only(path).rejection)


def test_a_damaged_zip_member_does_not_cost_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("bad.png", b"to be damaged")
        archive.writestr("good.png", b"fine")
    path.write_bytes(path.read_bytes().replace(b"to be damaged", b"to be Damaged"))
    bad, good = find_images([path])
    assert "damaged" in str(bad.rejection)
    assert good.data == b"fine"


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_file_that_only_claims_to_be_an_archive(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not an archive at all" * 100)
    item = only(tmp_path / name)
    assert item.name == str(tmp_path / name)
    assert "damaged" in str(item.rejection)


@pytest.mark.parametrize("kind", ["a.tar", "a.tar.gz"])
def test_an_archive_cut_short_gives_what_it_has_then_says_so(tmp_path: Path, kind: str) -> None:
    path = write_archive(tmp_path / kind, {f"{index}.png": os.urandom(40_000) for index in range(4)})
    path.write_bytes(path.read_bytes()[:100_000])
    *members, last = find_images([path])
    assert [len(item.data or b"") for item in members] == [40_000, 40_000]
    assert last.name == str(path)
    assert "cut short" in str(last.rejection)


def test_a_wrong_checksum_of_a_gzip_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", {"a.png": b"x" * 5000})
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # in the CRC, which lies behind the last member
    path.write_bytes(bytes(data))
    first, last = find_images([path])
    assert first.data == b"x" * 5000
    assert "damaged" in str(last.rejection)


def test_what_the_caller_raises_is_not_taken_for_a_damaged_archive(tmp_path: Path) -> None:
    items = find_images([write_zip(tmp_path / "a.zip", CONTENT)])
    next(items)
    with pytest.raises(ValueError, match="mine"):
        items.throw(ValueError("mine"))  # type: ignore[attr-defined]


def test_a_missing_path_is_noticed_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        find_images([tmp_path, tmp_path / "missing"])


def test_links_and_special_files_in_folders(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"x")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "good.png").symlink_to(tmp_path / "sub" / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    found = {Path(item.name).name: item.rejection for item in find_images([tmp_path])}
    assert found.pop("a.png") is None
    assert found.pop("good.png") is None
    assert "link to a folder" in str(found.pop("circle"))
    assert "cannot be read" in str(found.pop("dangling.png"))
    assert "not a regular file" in str(found.pop("pipe.png"))
    assert not found


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_an_archive_without_permission_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_archive(tmp_path / name, CONTENT)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The files' own permissions do not bind an administrator, who may be running these tests.
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    monkeypatch.setattr(gzip, "GzipFile", refuse)
    assert "Permission denied" in str(only(path).rejection)


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    assert list(find_images([tmp_path])) == []


def test_files_are_counted_without_being_read(tmp_path: Path) -> None:
    (tmp_path / "in" / "deeper" / ".hidden").mkdir(parents=True)
    for name in ("a.png", "b.dcm", ".c.png", "deeper/d.png", "deeper/.hidden/e.png"):
        (tmp_path / "in" / name).write_bytes(b"")
    given = [tmp_path / "in", tmp_path / "in" / "a.png"]
    assert count_files(given) == len(list(find_images(given))) == 4
    (tmp_path / "in" / "deeper" / "f.ZIP").write_bytes(b"")
    assert count_files(given) is None
