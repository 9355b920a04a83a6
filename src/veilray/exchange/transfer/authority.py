"""A certificate authority to try mutual TLS with: short-lived, for loopback, its own key thrown away at once.

Not for use between sites: their IT has an authority, or makes one whose key is kept apart.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from veilray.errors import UsageError
from veilray.exchange.keys.keyfile import write_private
from veilray.files import replacing_folder

DAYS = 30
_SERVER, _AUTHORITY = "server", "ca"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def make_test_authority(out: Path, *, clients: Sequence[str] = ("client",)) -> None:
    """Write `ca.pem`, and `server` and every client each as `.pem` and `.key` (0600), into the new folder `out`.

    EC P-256, valid for 30 days, the server for localhost, 127.0.0.1 and ::1 only. UsageError where `out` exists, or the
    clients' names are no names for files or not different.
    """
    _check_names(clients)
    with replacing_folder(out, mode=0o700) as folder:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name("Veilray test authority")
        authority = (
            _certificate(subject, subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_private(folder / f"{_AUTHORITY}.pem", authority.public_bytes(serialization.Encoding.PEM))
        _issue(folder, _SERVER, ExtendedKeyUsageOID.SERVER_AUTH, key, authority)
        for name in clients:
            _issue(folder, name, ExtendedKeyUsageOID.CLIENT_AUTH, key, authority)


def _check_names(clients: Sequence[str]) -> None:
    for name in clients:
        if not _NAME.fullmatch(name) or name in (_SERVER, _AUTHORITY):
            raise UsageError(f"{name!r} names no client: use a to z, 0 to 9 and -, but not {_SERVER} or {_AUTHORITY}")
    if not clients or len(set(clients)) < len(clients):
        raise UsageError("every client needs a name of its own")


def _issue(
    folder: Path,
    name: str,
    usage: x509.ObjectIdentifier,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _certificate(_name(f"Veilray test {name}"), issuer.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if name == _SERVER:
        addresses = [ipaddress.ip_address(text) for text in ("127.0.0.1", "::1")]
        names = [x509.DNSName("localhost"), *(x509.IPAddress(address) for address in addresses)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    write_private(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(folder / f"{name}.key", private)


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    begin = datetime.now(UTC) - timedelta(minutes=5)  # clocks differ
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=DAYS))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
