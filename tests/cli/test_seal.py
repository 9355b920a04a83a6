"""veilray seal and open: a release goes from site to site and is trained on; what may not leave does not."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from tests.command_line import done, veilray
from tests.exchange.sites import denoised_folder, make_sites

from veilray.cohort.release import Release
from veilray.exchange.keys.folder import KeyFolder


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_sites(tmp_path / "keys")
    return tmp_path / "keys"


def test_a_release_is_sealed_and_opened(flow_cohort: Path, tmp_path: Path, keys: Path) -> None:
    flow_release = tmp_path / "release"
    done("obfuscate", flow_cohort, "--out", flow_release, "--seed", 7)
    bundle, out = tmp_path / "a.veil", tmp_path / "out"
    words = ["seal", flow_release, "--out", bundle, "--keys", keys / "one", "--to", "two"]
    refused = veilray(*words)
    assert (refused.status, len(refused.lines), bundle.exists()) == (4, 1, False)
    assert "the ledger does not know it" in refused.err
    assert veilray(*words, "--override-name", "A. Chief").status == 2
    said = done(*words, "--override-name", "A. Chief", "--override-reason", "phantoms only")
    assert "release, 3 files" in said.out
    assert "Overridden, with name and reason kept: the ledger does not know it" in said.out
    assert "sealing overridden: A. Chief, for two" in done("ledger", "list", keys / "one", "--events").out
    assert "made from a seed" in said.out
    said = done("open", bundle, "--out", out, "--keys", keys / "two")
    assert "release from one" in said.out
    Release.open(out).verify()
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {
        file.name: file.read_bytes() for file in flow_release.iterdir()
    }


def test_a_release_goes_to_whom_it_was_made_for(flow_cohort: Path, tmp_path: Path, keys: Path) -> None:
    release, one = tmp_path / "release", keys / "one"
    KeyFolder.open(one).pin(KeyFolder.open(keys / "stranger").card)
    done("obfuscate", flow_cohort, "--out", release, "--keys", one, "--receiver", "two")
    words = ["seal", release, "--keys", one, "--out"]
    refused = veilray(*words, tmp_path / "a.veil", "--to", "two", "--to", "stranger")
    assert (refused.status, len(refused.lines)) == (4, 1)
    assert "not made for stranger" in refused.err
    done(*words, tmp_path / "b.veil", "--to", "two")
    two = KeyFolder.open(keys / "two")
    two.rotate("receiving")
    KeyFolder.open(one).pin(two.card, replace=True)
    done(*words, tmp_path / "c.veil", "--to", "two")
    assert sorted(file.name for file in tmp_path.glob("*.veil")) == ["b.veil", "c.veil"]


@pytest.mark.slow
@pytest.mark.parametrize("looked", [True, False])
def test_what_was_settled_by_hand_leaves_only_if_its_folder_was_noted(
    flow_cohort: Path, tmp_path: Path, keys: Path, looked: bool
) -> None:
    release, one = tmp_path / "release", keys / "one"
    done("obfuscate", flow_cohort, "--out", release, "--keys", one, "--receiver", "two")
    with sqlite3.connect(one / "ledger.db") as connection:  # as a kill leaves it between the folder and the ledger
        connection.execute("UPDATE releases SET status = 'reserved', digest = ''")
    connection.close()
    release_id = Release.open(release).record.release_id
    settle = ("ledger", "settle", one, release_id, "--name", "B. Clerk", "--reason", "it is whole")
    assert veilray(*settle, "--not-released", "--folder", release).status == 2
    other = tmp_path / "other"
    done("obfuscate", flow_cohort, "--out", other)
    assert veilray(*settle, "--released", "--folder", other).status == 2
    done(*settle, "--released", *(["--folder", release] if looked else []))
    said = veilray("seal", release, "--out", tmp_path / "a.veil", "--keys", one, "--to", "two")
    assert (said.status, "does not know its content" in said.err) == ((0, False) if looked else (4, True))


def test_what_must_stay_is_refused_with_status_4(flow_cohort: Path, tmp_path: Path, keys: Path) -> None:
    said = veilray("seal", flow_cohort, "--out", tmp_path / "a.veil", "--keys", keys / "one", "--to", "two")
    assert (said.status, len(said.lines)) == (4, 1)
    assert "clean images" in said.err
    said = veilray("seal", flow_cohort, "--out", tmp_path / "a.veil", "--keys", keys / "one", "--to", "nobody")
    assert said.status == 4
    assert not (tmp_path / "a.veil").exists()


def test_site_two_sends_no_releases(flow_cohort: Path, tmp_path: Path, keys: Path) -> None:
    release = tmp_path / "release"
    done("obfuscate", flow_cohort, "--out", release, "--pairs", "--consent-clean-images")
    words = ["seal", release, "--out", tmp_path / "a.veil", "--keys", keys / "two", "--to", "one"]
    said = veilray(*words, "--override-name", "A. Chief", "--override-reason", "phantoms only")
    assert (said.status, len(said.lines), "Site Two" in said.err) == (4, 1, True)
    assert not (tmp_path / "a.veil").exists()
    assert '"refused", "reason": "role"' in (keys / "two/exchange/log.jsonl").read_text()


def test_a_release_that_a_seed_undoes_leaves_only_if_somebody_answers_for_it(
    flow_cohort: Path, tmp_path: Path, keys: Path
) -> None:
    release, one = tmp_path / "release", keys / "one"
    done("obfuscate", flow_cohort, "--out", release, "--keys", one, "--receiver", "two", "--seed", 7)
    words = ["seal", release, "--out", tmp_path / "a.veil", "--keys", one, "--to", "two"]
    refused = veilray(*words)
    assert (refused.status, len(refused.lines)) == (4, 1)
    assert "from a seed" in refused.err
    said = done(*words, "--override-name", "A. Chief", "--override-reason", "phantoms only")
    assert "Overridden, with name and reason kept: its noise was made from a seed" in said.out
    assert "sealing overridden: A. Chief, for two" in done("ledger", "list", one, "--events").out


def test_a_tampered_bundle_is_refused_with_status_4(tmp_path: Path, keys: Path) -> None:
    bundle = tmp_path / "a.veil"
    done("seal", denoised_folder(tmp_path / "images"), "--out", bundle, "--keys", keys / "two", "--to", "one")
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(data)
    said = veilray("open", bundle, "--out", tmp_path / "out", "--keys", keys / "one")
    assert (said.status, len(said.lines)) == (4, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_passphrase_comes_from_a_private_file_only(tmp_path: Path, keys: Path) -> None:
    locked = KeyFolder.create(tmp_path / "locked", name="locked", role="site-two", passphrase="open sesame")
    locked.pin(KeyFolder.open(keys / "two").card)
    words = (
        "seal",
        denoised_folder(tmp_path / "images"),
        "--out",
        tmp_path / "a.veil",
        "--keys",
        tmp_path / "locked",
        "--to",
        "two",
    )
    phrase = tmp_path / "phrase"
    phrase.write_text("open sesame\n")
    phrase.chmod(0o644)
    assert veilray(*words, "--passphrase-file", phrase).status == 4
    phrase.chmod(0o600)
    done(*words, "--passphrase-file", phrase)
    phrase.write_text("wrong\n")
    said = veilray(*words[:3], tmp_path / "b.veil", *words[4:], "--passphrase-file", phrase)
    assert said.status == 4
    assert "sesame" not in said.err
