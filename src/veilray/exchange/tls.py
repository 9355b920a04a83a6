"""TLS on both ends of a connection: keys that others could read are refused, and nobody is believed unchecked."""

from __future__ import annotations

import ssl
from pathlib import Path

from veilray.errors import UsageError
from veilray.exchange.keys.keyfile import check_private

_NO_PASSWORD = ""
"""For keys that are encrypted: OpenSSL would ask at the terminal, which a service has not."""


def server_context(
    *, certificate: Path, key: Path, authority: Path | None, least: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """What a server shows; with an `authority`, every client must show a certificate of it. All files are PEM.

    Raises RefusedError where others can read the key, UsageError where the files are missing or do not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = least
    try:
        check_private(key, key.stat())
        context.load_cert_chain(certificate, key, password=_NO_PASSWORD)
        if authority is not None:
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        raise _unfit("server", error, certificate, key, authority) from None
    return context


def client_context(
    *,
    authority: Path,
    certificate: Path | None,
    key: Path | None,
    least: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """What a client shows, if anything, and whom it believes: the server's certificate and name are checked.

    Raises RefusedError where others can read the key, UsageError where the files are missing or do not fit.
    """
    try:
        context = ssl.create_default_context(cafile=str(authority))
        context.minimum_version = least
        if certificate is not None and key is not None:
            check_private(key, key.stat())
            context.load_cert_chain(certificate, key, password=_NO_PASSWORD)
    except OSError as error:  # ssl.SSLError is one
        raise _unfit("client", error, authority, certificate, key) from None
    return context


def _unfit(what: str, error: OSError, *files: Path | None) -> UsageError:
    reason = getattr(error, "reason", None) or error.strerror or "unreadable"
    *others, last = [str(file) for file in files if file is not None]
    named = f"{', '.join(others)} and {last} do" if others else f"{last} does"
    return UsageError(f"{named} not make a TLS {what}: {reason}")
