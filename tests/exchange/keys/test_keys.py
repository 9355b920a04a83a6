"""Key folders: separate private files that other tools read, refused when open or damaged, rotated without loss."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import pyrage
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veilray.errors import DataError, RefusedError, UsageError
from veilray.exchange.keys.folder import KeyFolder, KeyKind, Secret
from veilray.exchange.keys.secret import read_passphrase

SECRETS: tuple[KeyKind, ...] = ("noise", "pseudonyms", "ledger")
PHRASE = "correct horse"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    KeyFolder.create(tmp_path_factory.mktemp("site") / "keys", name="hospital")
    return next(tmp_path_factory.getbasetemp().glob("site*/keys"))


@pytest.fixture(scope="module")
def locked_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("locked") / "keys"
    KeyFolder.create(folder, name="hospital", passphrase=PHRASE)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "keys"))


@pytest.fixture
def locked(locked_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(locked_once, tmp_path / "locked"))


def _values(keys: KeyFolder) -> dict[str, object]:
    """Everything secret that a folder gives, by the name of the method."""
    return {
        "signing": keys.signing_key().private_bytes_raw(),
        "receiving": str(keys.age_identity()),
        "noise": keys.noise_secret().reveal(),
        "pseudonyms": keys.pseudonym_key("ab").reveal(),
        "ledger": keys.ledger_key().reveal(),
    }


def test_four_keys_and_the_ledgers_are_separate_and_differ_in_every_folder(folder: Path, tmp_path: Path) -> None:
    values = _values(KeyFolder.open(folder))
    others = _values(KeyFolder.create(tmp_path / "other", name="hospital"))
    raw = [value if isinstance(value, bytes) else str(value).encode() for value in (*values.values(), *others.values())]
    assert len(set(raw)) == 10
    assert _values(KeyFolder.open(folder)) == values


def test_files_are_their_owners_alone(made: Path, locked_once: Path) -> None:
    for root in (made, locked_once):
        assert root.stat().st_mode & 0o777 == 0o700
        for path in root.rglob("*"):
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
        assert not list(root.parent.glob(".*"))  # nothing is left of what was made aside


def test_openssl_and_age_read_the_keys(folder: Path) -> None:
    keys = KeyFolder.open(folder)
    if shutil.which("openssl"):
        command = ["openssl", "pkey", "-in", folder / "signing-1.key", "-pubout", "-outform", "DER"]
        public = subprocess.run(command, capture_output=True, check=True).stdout
        assert public[-32:].hex() == keys.card.signing_key
    if not shutil.which("age-keygen"):
        pytest.skip("age is not installed")
    shown = subprocess.run(["age-keygen", "-y", folder / "receiving-1.key"], capture_output=True, check=True, text=True)
    assert shown.stdout.strip() == keys.card.age_recipient


def test_what_is_encrypted_and_signed_comes_back(folder: Path) -> None:
    keys = KeyFolder.open(folder)
    sealed = pyrage.encrypt(b"x", [pyrage.x25519.Recipient.from_str(keys.card.age_recipient)])
    assert pyrage.decrypt(sealed, list(keys.age_identities())) == b"x"
    keys.card.public_key().verify(keys.signing_key().sign(b"x"), b"x")


def test_pseudonym_keys_differ_for_each_receiver(folder: Path) -> None:
    keys = KeyFolder.open(folder)
    assert keys.pseudonym_key("ab") == keys.pseudonym_key("ab")
    assert keys.pseudonym_key("ab") != keys.pseudonym_key("cd")


def test_site_two_has_no_keys_of_site_one(tmp_path: Path) -> None:
    keys = KeyFolder.create(tmp_path / "two", name="centre", role="site-two")
    assert {path.name for path in keys.path.iterdir()} == {"keys.json", "peers", "signing-1.key", "receiving-1.key"}
    for secret in (keys.noise_secret, keys.ledger_key, lambda: keys.pseudonym_key("ab")):
        with pytest.raises(UsageError, match="site-two"):
            secret()


def test_an_existing_folder_is_never_replaced(folder: Path) -> None:
    before = _values(KeyFolder.open(folder))
    with pytest.raises(UsageError, match="already exists"):
        KeyFolder.create(folder, name="hospital")
    assert _values(KeyFolder.open(folder)) == before


def test_secrets_do_not_show(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = KeyFolder.open(folder, passphrase="hunter2")
    secret = keys.noise_secret()
    logging.getLogger().warning("%s %r %s", secret, keys, vars(keys))
    for hidden in (secret.reveal().hex(), repr(secret.reveal()), "hunter2"):
        assert hidden not in caplog.text
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, hash):
        with pytest.raises(TypeError):
            leak(secret)  # type: ignore[operator]
    assert secret == Secret(secret.reveal())
    assert secret != Secret(bytes(32))
    assert secret.derive("a", b"bc") != secret.derive("ab", b"c")


@pytest.mark.parametrize("name", ["keys.json", "noise-1.key", "signing-1.key", "receiving-1.key", "ledger.db", "."])
@pytest.mark.parametrize("mode", [0o040, 0o004, 0o020])
def test_files_open_to_others_are_refused(folder: Path, name: str, mode: int) -> None:
    path = folder / name
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(RefusedError, match="chmod"):
        _values(KeyFolder.open(folder)), KeyFolder.open(folder).ledger()


def test_links_and_pipes_are_no_keys(folder: Path) -> None:
    key = folder / "noise-1.key"
    key.rename(folder / "elsewhere")
    key.symlink_to("elsewhere")
    with pytest.raises(DataError):
        KeyFolder.open(folder).noise_secret()
    key.unlink()
    os.mkfifo(key, 0o600)
    with pytest.raises(DataError, match="not a file"):
        KeyFolder.open(folder).noise_secret()


@pytest.mark.parametrize("kind", SECRETS)
def test_a_key_of_another_kind_is_told(folder: Path, kind: KeyKind) -> None:
    other = SECRETS[(SECRETS.index(kind) + 1) % 3]
    (folder / f"{kind}-1.key").write_bytes((folder / f"{other}-1.key").read_bytes())
    with pytest.raises(DataError, match=f"no {kind} key"):
        _values(KeyFolder.open(folder))


def test_keys_of_other_folders_are_told(folder: Path, tmp_path: Path) -> None:
    KeyFolder.create(tmp_path / "other", name="hospital")
    for kind in ("signing", "receiving"):
        shutil.copy(tmp_path / "other" / f"{kind}-1.key", folder / f"{kind}-1.key")
    for key in (KeyFolder.open(folder).signing_key, KeyFolder.open(folder).age_identity):
        with pytest.raises(DataError, match="card"):
            key()


FILES = ["keys.json", "noise-1.key", "signing-1.key", "receiving-1.key", "pseudonyms-1.key"]


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mangled_key_files_give_a_clear_error_or_the_same_keys(made: Path, tmp_path: Path, data: st.DataObject) -> None:
    copied = Path(shutil.copytree(made, tmp_path / "fuzzed", dirs_exist_ok=True))
    before = _values(KeyFolder.open(copied))
    file = copied / data.draw(st.sampled_from(FILES))
    file.write_bytes(data.draw(mangled(file.read_bytes())))
    told = ""
    try:
        after = _values(KeyFolder.open(copied))
    except (DataError, RefusedError) as error:
        told = str(error)
    else:
        assert after == before
    assert "\n" not in told
    for value in before.values():
        assert (value.hex() if isinstance(value, bytes) else str(value)) not in told


def mangled(whole: bytes) -> st.SearchStrategy[bytes]:
    """`whole` cut, flipped, spliced or replaced."""
    at = st.integers(0, len(whole) - 1)
    flipped = st.builds(lambda i, bit: whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :], at, st.integers(0, 7))
    cut = st.builds(lambda i: whole[:i], at)
    spliced = st.builds(lambda i, j, text: whole[:i] + text + whole[j:], at, at, st.binary(max_size=20))
    deep = st.sampled_from([b"[" * 9000, b'{"a":' * 3000, b"\xff\xfe" * 50, b"null", b"{}", b"1e999", whole * 400])
    return flipped | cut | spliced | st.binary(max_size=200) | deep


class TestPassphrase:
    def test_every_key_is_encrypted_and_the_passphrase_opens_it(self, locked: Path) -> None:
        keys = KeyFolder.open(locked, passphrase=PHRASE)
        values = _values(keys)
        for file in locked.glob("*.key"):
            assert file.read_bytes().startswith(b"age-encryption.org/v1\n")
        data = b"".join(file.read_bytes() for file in locked.rglob("*") if file.is_file())
        for value in values.values():
            for shown in (value, value.hex().encode()) if isinstance(value, bytes) else (str(value).encode(),):
                assert shown not in data
        with keys.ledger() as ledger:
            assert ledger.releases() == []

    def test_what_is_public_needs_none_and_what_is_secret_does(self, locked: Path) -> None:
        keys = KeyFolder.open(locked)
        assert keys.locked
        assert keys.card.name == "hospital"
        with pytest.raises(RefusedError, match="has a passphrase"):
            keys.signing_key()
        with pytest.raises(RefusedError, match="passphrase is wrong") as refusal:
            KeyFolder.open(locked, passphrase="wrong guess").signing_key()
        assert "guess" not in str(refusal.value)

    @pytest.mark.slow  # scrypt takes its second each time
    def test_it_can_be_changed_and_keys_rotated_under_it(self, locked: Path) -> None:
        keys = KeyFolder.open(locked, passphrase=PHRASE)
        noise = keys.noise_secret()
        keys.rotate("noise")
        keys.change_passphrase("other")
        assert KeyFolder.open(locked, passphrase="other").noise_secret() != noise
        assert (locked / "noise-2.key").read_bytes().startswith(b"age-encryption.org/v1\n")
        with pytest.raises(RefusedError):
            KeyFolder.open(locked, passphrase=PHRASE).noise_secret()

    def test_a_key_in_clear_among_locked_ones_is_refused(self, locked: Path, folder: Path) -> None:
        shutil.copy(folder / "noise-1.key", locked / "noise-1.key")
        with pytest.raises(DataError, match="not encrypted"):
            KeyFolder.open(locked, passphrase=PHRASE).noise_secret()

    @pytest.mark.parametrize("work", [b"30", b"64", b"999"])
    def test_a_lock_that_would_take_for_ever_is_refused_at_once(self, locked: Path, work: bytes) -> None:
        lock = locked / "lock.age"
        lock.write_bytes(re.sub(rb"(-> scrypt \S+ )\d+", rb"\g<1>" + work, lock.read_bytes()))
        with pytest.raises(DataError, match="damaged"):
            KeyFolder.open(locked, passphrase=PHRASE).signing_key()

    def test_mangled_locked_keys_are_told(self, locked: Path) -> None:
        keys = KeyFolder.open(locked, passphrase=PHRASE)
        keys.signing_key()  # unlocks once: scrypt takes a second
        file = locked / "noise-1.key"
        whole = file.read_bytes()
        for at in range(0, len(whole), 7):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(DataError):
                keys.noise_secret()
            file.write_bytes(whole[:at])
            with pytest.raises(DataError):
                keys.noise_secret()

    @pytest.mark.parametrize("text", ["", "\n", "  \n", "two\nlines\n"])
    def test_a_passphrase_is_one_line(self, text: str) -> None:
        with pytest.raises(UsageError):
            read_passphrase(text, source="file")
        assert read_passphrase("one line\r\n", source="file") == Secret(b"one line")


class TestRotation:
    def test_old_receiving_keys_still_open_old_bundles(self, folder: Path) -> None:
        keys = KeyFolder.open(folder)
        sealed = pyrage.encrypt(b"x", [pyrage.x25519.Recipient.from_str(keys.card.age_recipient)])
        before = keys.card
        keys.rotate("receiving")
        keys = KeyFolder.open(folder)
        assert keys.card.age_recipient != before.age_recipient
        assert keys.card.signing_key == before.signing_key
        assert keys.card.fingerprint != before.fingerprint
        assert str(keys.age_identities()[0].to_public()) == keys.card.age_recipient
        assert pyrage.decrypt(sealed, list(keys.age_identities())) == b"x"

    def test_old_pseudonym_keys_are_kept_and_come_after_the_new(self, folder: Path) -> None:
        keys = KeyFolder.open(folder)
        first = keys.pseudonym_key("ab")
        keys.rotate("pseudonyms")
        second = keys.pseudonym_key("ab")
        keys.rotate("pseudonyms")
        found = KeyFolder.open(folder).pseudonym_keys("ab")
        assert found[1:] == (second, first)
        assert len(found) == 3

    @pytest.mark.parametrize("kind", ["noise", "signing"])
    def test_old_noise_and_signing_keys_are_gone(self, folder: Path, kind: KeyKind) -> None:
        before = _values(KeyFolder.open(folder))
        name = KeyFolder.open(folder).noise_id()
        KeyFolder.open(folder).rotate(kind)
        after = _values(KeyFolder.open(folder))
        assert {key for key in before if before[key] != after[key]} == {kind}
        assert [path.name for path in folder.glob(f"{kind}-*.key")] == [f"{kind}-2.key"]
        assert (KeyFolder.open(folder).noise_id() != name) is (kind == "noise")

    def test_a_kill_before_the_state_is_written_leaves_the_old_key_in_use(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = _values(KeyFolder.open(folder))

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        for kind in ("signing", "receiving", "noise", "pseudonyms"):
            with monkeypatch.context() as patch:
                patch.setattr("veilray.exchange.keys.keystate.KeyState.save", killed)
                with pytest.raises(KeyboardInterrupt):
                    KeyFolder.open(folder).rotate(kind)
            assert _values(KeyFolder.open(folder)) == before
            KeyFolder.open(folder).rotate(kind)
            assert _values(KeyFolder.open(folder)) != before
            before = _values(KeyFolder.open(folder))

    def test_the_ledgers_key_stays(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="no ledger key to rotate"):
            KeyFolder.open(folder).rotate("ledger")
