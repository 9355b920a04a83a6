"""The test authority, checked by OpenSSL."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.command_line import done, veilray


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
