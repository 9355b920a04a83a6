"""The keys of a site, each in a file of its own, and the cards of the sites it deals with.

    KEYS/                   0700
      keys.json             role, own public card, which file of each kind is in use; changed by one rename
      noise-1.key           Site One: 32 bytes; with them and an image's digest its releases are undone
      pseudonyms-1.key      Site One: 32 bytes; whoever has them links pseudonyms to ids by trying ids
      ledger-1.key          Site One: 32 bytes that hide what the release ledger is about; never rotated
      signing-1.key         Ed25519, PKCS #8 PEM: says that a bundle is this site's
      receiving-1.key       age X25519 identity: opens bundles that are for this site
      lock.age              where there is a passphrase: the age identity that the key files are encrypted to
      peers/NAME.json       pinned cards
      former/N.json         cards that were replaced, unpinned or rotated away
      ledger.db             Site One: the release ledger

All key files are 0600. Rotation writes the next number, then `keys.json`; a kill between leaves the old key in use.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from veilray.errors import DataError, RefusedError, UsageError
from veilray.exchange.keys.card import PublicCard, check_name, make_card
from veilray.exchange.keys.former import Former, add_former
from veilray.exchange.keys.keyfile import (
    AGE_HEADER,
    KEY_BYTES,
    check_private,
    decode_identity,
    decode_plain,
    decode_signing,
    decrypt_with,
    encode_plain,
    encode_signing,
    encrypt_with,
    read_private,
    write_private,
)
from veilray.exchange.keys.keystate import ROLES, KeyKind, KeyState, Role, read_state
from veilray.exchange.keys.peers import PEERS, Peers
from veilray.exchange.keys.secret import Secret
from veilray.files import replacing_folder

if TYPE_CHECKING:
    import pyrage
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from veilray.exchange.ledger.ledger import Ledger

__all__ = ["KeyFolder", "KeyKind", "PublicCard", "Role", "Secret"]

LOCK_FILE = "lock.age"
# Retired keys that are still of use: to open bundles sent before, to lead old pseudonyms back to ids.
KEPT: tuple[KeyKind, ...] = ("receiving", "pseudonyms")


@dataclass(kw_only=True)
class KeyFolder:
    """An opened key folder. Keys are read from their files when they are asked for, and not kept."""

    path: Path
    _state: KeyState
    _passphrase: Secret | None = None
    _unlocked: list[pyrage.x25519.Identity] = field(default_factory=list, repr=False)

    @classmethod
    def create(
        cls, path: Path, *, name: str, role: Role = "site-one", passphrase: Secret | str | None = None
    ) -> KeyFolder:
        """Make the new folder `path` with a new key of every kind the role needs.

        Raises UsageError where `path` exists or `name` cannot name a site.
        """
        _check_packages()
        import pyrage
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        from veilray.exchange.ledger.ledger import LEDGER_FILE, Ledger

        check_name(name)
        phrase = _as_secret(passphrase)
        signing, receiving = Ed25519PrivateKey.generate(), pyrage.x25519.Identity.generate()
        card = make_card(name=name, signing_key=signing, age_recipient=str(receiving.to_public()))
        lock = pyrage.x25519.Identity.generate() if phrase else None
        recipient = str(lock.to_public()) if lock else None
        state = KeyState(role=role, card=card, current=dict.fromkeys(ROLES[role], 1), lock=recipient)
        with replacing_folder(path, mode=0o700) as folder:
            made = cls(path=folder, _state=state)
            if phrase and lock:
                write_private(folder / LOCK_FILE, encrypt_with(phrase, f"{lock}\n".encode()))
            made._write("signing", 1, encode_signing(signing))
            made._write("receiving", 1, _identity_file(receiving))
            for kind in ROLES[role][2:]:
                secret = Secret(secrets.token_bytes(KEY_BYTES))
                made._write(kind, 1, encode_plain(secret, kind=kind))
                if kind == "ledger":
                    Ledger.create(folder / LEDGER_FILE, key=secret)
            (folder / PEERS).mkdir(mode=0o700)
            made._save(state)
        return cls(path=path, _state=state, _passphrase=phrase)

    @classmethod
    def open(cls, path: Path, *, passphrase: Secret | str | None = None) -> KeyFolder:
        """Open a key folder; no key is read yet, so what is public needs no passphrase.

        Raises DataError where `path` is no whole key folder, RefusedError where others could read it.
        """
        _check_packages()
        try:
            check_private(path, path.stat())
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{path} is missing: make keys with `veilray keygen`") from None
        return cls(path=path, _state=read_state(path), _passphrase=_as_secret(passphrase))

    @property
    def role(self) -> Role:
        """Which site's keys these are."""
        return self._state.role

    @property
    def card(self) -> PublicCard:
        """This site's own public card."""
        return self._state.card

    @property
    def locked(self) -> bool:
        """Whether the key files are encrypted by a passphrase."""
        return self._state.lock is not None

    def signing_key(self) -> Ed25519PrivateKey:
        """The key this site signs with."""
        file = self._file("signing")
        key = decode_signing(self._read(file), path=file)
        if key.public_key().public_bytes_raw().hex() != self.card.signing_key:
            raise DataError(f"{file} does not belong to this folder's card; restore a backup")
        return key

    def age_identity(self) -> pyrage.x25519.Identity:
        """The identity that opens what is encrypted for this site's present card."""
        identity = self.age_identities()[0]
        if str(identity.to_public()) != self.card.age_recipient:
            raise DataError(f"{self._file('receiving')} does not belong to this folder's card; restore a backup")
        return identity

    def age_identities(self) -> tuple[pyrage.x25519.Identity, ...]:
        """The present identity, then the retired ones, which open what was sent before a rotation."""
        return tuple(decode_identity(self._read(file), path=file) for file in self._files("receiving"))

    def noise_secret(self) -> Secret:
        """The secret that release noise is drawn from: 32 bytes."""
        return self._secret("noise")

    def noise_id(self) -> str:
        """Names the noise secret without giving it away: 16 hex digits, for the ledger."""
        return self.noise_secret().derive("veilray name of a noise secret").reveal()[:8].hex()

    def pseudonym_key(self, receiver: str) -> Secret:
        """The key of pseudonyms for one receiver, by its `receiver_id`: 32 bytes, another for each receiver."""
        return self.pseudonym_keys(receiver)[0]

    def pseudonym_keys(self, receiver: str) -> tuple[Secret, ...]:
        """The present key of pseudonyms for a receiver, then those from before rotations, to lead old names back."""
        files = self._files("pseudonyms")
        keys = [decode_plain(self._read(file), kind="pseudonyms", path=file) for file in files]
        return tuple(key.derive("veilray pseudonyms for a receiver", receiver.encode()) for key in keys)

    def ledger_key(self) -> Secret:
        """The key that hides the subjects of the release ledger: 32 bytes."""
        return self._secret("ledger")

    def ledger(self) -> Ledger:
        """The release ledger that lies beside the keys, open; to be used in a `with` block."""
        from veilray.exchange.ledger.ledger import LEDGER_FILE, Ledger

        return Ledger.open(self.path / LEDGER_FILE, key=self.ledger_key())

    def peers(self) -> list[PublicCard]:
        """The pinned cards, by name."""
        return Peers(self.path).all()

    def peer(self, name_or_fingerprint: str) -> PublicCard:
        """The pinned card of that name or fingerprint (64 hex digits); RefusedError where none is pinned."""
        return Peers(self.path).find(name_or_fingerprint)

    def fingerprints_of(self, card: PublicCard) -> list[str]:
        """Fingerprints of a pinned partner, newest first: of its card, and of those that this one replaced."""
        return Peers(self.path).fingerprints(card)

    def receiver_id(self, card: PublicCard) -> str:
        """What pseudonyms for a partner hang on: the fingerprint of its first card, whatever replaced that since."""
        return self.fingerprints_of(card)[-1]

    def receiver_ids(self, name_or_fingerprint: str) -> list[str]:
        """All that pseudonyms for a partner may ever have hung on; RefusedError where it was never pinned."""
        return Peers(self.path).ever(name_or_fingerprint)

    def former_cards(self) -> list[Former]:
        """Cards that were replaced, unpinned or rotated away, oldest first."""
        return Peers(self.path).former()

    def own_fingerprints(self) -> set[str]:
        """Fingerprints that bundles for this site may name: its own, and those it had before rotations."""
        recipients = [str(identity.to_public()) for identity in self.age_identities()]
        kept = {replace(self.card, age_recipient=recipient).fingerprint for recipient in recipients}
        return kept | {one.card.fingerprint for one in self.former_cards() if one.why == "own"}

    def pin(self, card: PublicCard, *, replace: bool = False) -> None:
        """Trust a card from now on. Its fingerprint must have been compared with its owner over another channel.

        Raises RefusedError where other keys are pinned under its name, unless `replace`, or its keys under another
        name; UsageError where it is this site's own.
        """
        if card.fingerprint == self.card.fingerprint:
            raise UsageError(f"{card.name} is the card of {self.path} itself; pin the other site's")
        Peers(self.path).pin(card, replace=replace)

    def unpin(self, name_or_fingerprint: str) -> PublicCard:
        """Trust a card no more; it is returned. RefusedError where it is not pinned."""
        return Peers(self.path).unpin(name_or_fingerprint)

    def files_in_use(self) -> list[str]:
        """Names of the key files in use."""
        return [self._file(kind).name for kind in self._state.current]

    def rotate(self, kind: KeyKind) -> None:
        """Put a new key of one kind to use. Of receiving and pseudonym keys the old one is kept; others are deleted.

        Raises UsageError where the role has no such key, or for the ledger's, which would forget every release.
        """
        import pyrage
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if kind not in ROLES[self.role] or kind == "ledger":
            raise UsageError(f"there is no {kind} key to rotate in {self.path}")
        if self.locked:
            self._unlock()  # a new key could be locked without; but who lacks the passphrase shall not change keys
        signing = Ed25519PrivateKey.generate() if kind == "signing" else self.signing_key()
        recipient, number = self.card.age_recipient, self._state.current[kind] + 1
        if kind == "signing":
            data = encode_signing(signing)
        elif kind == "receiving":
            receiving = pyrage.x25519.Identity.generate()
            recipient, data = str(receiving.to_public()), _identity_file(receiving)
        else:
            data = encode_plain(Secret(secrets.token_bytes(KEY_BYTES)), kind=kind)
        self._write(kind, number, data)
        card = make_card(name=self.card.name, signing_key=signing, age_recipient=recipient)
        if card.fingerprint != self.card.fingerprint:
            add_former(self.path, self.card, "own")
        self._save(replace(self._state, card=card, current={**self._state.current, kind: number}))
        if kind not in KEPT:
            for old in range(1, number):
                (self.path / f"{kind}-{old}.key").unlink(missing_ok=True)

    def change_passphrase(self, passphrase: Secret | str) -> None:
        """Encrypt the lock by another passphrase; UsageError where these keys have none."""
        if not self.locked:
            raise UsageError(f"{self.path} has no passphrase; only new keys can be given one")
        identity = self._unlock()
        phrase = Secret(passphrase.encode()) if isinstance(passphrase, str) else passphrase
        write_private(self.path / LOCK_FILE, encrypt_with(phrase, f"{identity}\n".encode()))
        self._passphrase = phrase

    def _secret(self, kind: KeyKind) -> Secret:
        file = self._file(kind)
        return decode_plain(self._read(file), kind=kind, path=file)

    def _file(self, kind: KeyKind) -> Path:
        if kind not in self._state.current:
            raise UsageError(f"{self.path} has no {kind} key: it was made for {self.role}; Site One's keys are wanted")
        return self.path / f"{kind}-{self._state.current[kind]}.key"

    def _files(self, kind: KeyKind) -> list[Path]:
        """The file in use, then the retired ones that are left, newest first."""
        current = self._file(kind)
        older = [self.path / f"{kind}-{number}.key" for number in range(self._state.current[kind] - 1, 0, -1)]
        return [current, *(file for file in older if file.exists())]

    def _read(self, file: Path) -> bytes:
        import pyrage

        data = read_private(file)
        if not data.startswith(AGE_HEADER):
            if self.locked:
                raise DataError(f"{file} is not encrypted though these keys have a passphrase; restore a backup")
            return data
        try:
            plain: bytes = pyrage.decrypt(data, [self._unlock()])
        except pyrage.DecryptError:
            raise DataError(f"{file} is damaged or belongs to other keys; restore a backup") from None
        return plain

    def _unlock(self) -> pyrage.x25519.Identity:
        # scrypt takes a second: once a process is enough.
        if not self._unlocked:
            if self._passphrase is None:
                raise RefusedError(f"{self.path} has a passphrase; give it at the prompt or by --passphrase-file")
            file = self.path / LOCK_FILE
            plain = decrypt_with(self._passphrase, read_private(file), path=file)
            self._unlocked.append(decode_identity(plain, path=file))
        return self._unlocked[0]

    def _write(self, kind: KeyKind, number: int, data: bytes) -> None:
        import pyrage

        if self._state.lock is not None:
            data = pyrage.encrypt(data, [pyrage.x25519.Recipient.from_str(self._state.lock)])
        write_private(self.path / f"{kind}-{number}.key", data)

    def _save(self, state: KeyState) -> None:
        state.save(self.path)
        self._state = state


def _identity_file(identity: pyrage.x25519.Identity) -> bytes:
    return f"# public key: {identity.to_public()}\n{identity}\n".encode()


def _as_secret(passphrase: Secret | str | None) -> Secret | None:
    return Secret(passphrase.encode()) if isinstance(passphrase, str) else passphrase


def _check_packages() -> None:
    try:
        import cryptography  # noqa: F401
        import pyrage  # noqa: F401
    except ImportError:
        raise UsageError("keys need more packages: install Veilray with its extra 'sites'") from None
