"""The test authority, checked by OpenSSL."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.command_line import done, veilray

from veilray.exchange.transfer.client import ClientTls
from veilray.exchange.transfer.config import certificate_digest


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_openssl_accepts_its_certificates_for_their_purpose_only(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    done("receive", "--make-test-ca", folder)

    def verifies(name: str, purpose: str, *more: str) -> bool:
        words = ["openssl", "verify", "-x509_strict", "-CAfile", folder / "ca.pem", "-purpose", purpose, *more]
        return subprocess.run([*words, folder / f"{name}.pem"], capture_output=True, timeout=60).returncode == 0

    assert verifies("server", "sslserver", "-verify_hostname", "localhost")
    assert verifies("server", "sslserver", "-verify_ip", "127.0.0.1")
    assert not verifies("server", "sslserver", "-verify_hostname", "hospital.example")
    assert not verifies("server", "sslclient")
    assert verifies("client", "sslclient")
    assert not verifies("client", "sslserver")


def test_keys_are_private_and_the_authority_keeps_none(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    done("receive", "--make-test-ca", folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        *("ca.pem", "client.key", "client.pem", "server.key", "server.pem")
    ]
    assert {file.stat().st_mode & 0o077 for file in folder.glob("*.key")} == {0}
    assert veilray("receive", "--make-test-ca", folder).status == 2
    assert veilray("receive").status == 2


def test_every_sender_can_have_a_client_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    said = done("receive", "--make-test-ca", folder, "--client", "ward-1", "--client", "ward-2")
    names = {file.name for file in folder.iterdir()}
    clients = {f"ward-{number}.{ending}" for number in (1, 2) for ending in ("pem", "key")}
    assert names == {"ca.pem", "server.pem", "server.key", *clients}
    assert all(name in said.out for name in clients)
    assert certificate_digest(folder / "ward-1.pem") != certificate_digest(folder / "ward-2.pem")
    for name in ("ward-1", "ward-2"):
        ClientTls(authority=folder / "ca.pem", certificate=folder / f"{name}.pem", key=folder / f"{name}.key").context()


@pytest.mark.parametrize("names", [["../x"], ["server"], ["ca"], ["A"], [""], ["a", "a"], ["a" * 40]])
def test_names_that_are_no_clients_are_refused(tmp_path: Path, names: list[str]) -> None:
    words = [word for name in names for word in ("--client", name)]
    assert veilray("receive", "--make-test-ca", tmp_path / "tls", *words).status == 2
    assert not list(tmp_path.iterdir())
