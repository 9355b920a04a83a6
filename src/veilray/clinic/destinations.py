"""Sending derived objects on: C-STORE to a DICOM archive, STOW-RS to a web archive. One try each; no back-off here."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import ssl
import warnings
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt

from veilray.clinic.bounds import wait_for_no_acknowledgement
from veilray.clinic.config import ClientTls, Destination, DicomDestination, StowDestination
from veilray.clinic.receiver import SOP_CLASSES
from veilray.errors import UsageError, VeilrayError
from veilray.exchange.keys.keyfile import check_private
from veilray.exchange.tls import client_context
from veilray.images.derived import IMPLEMENTATION_UID

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.events import Event

LOOPBACK = ("127.0.0.1", "::1", "localhost")
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
# PS3.4 table B.2-1: stored, though something was changed or does not fit.
_WARNINGS = (0xB000, 0xB006, 0xB007)
_EXPLICIT, _IMPLICIT = ExplicitVRLittleEndian, ImplicitVRLittleEndian


class DestinationDown(VeilrayError):  # noqa: N818 - it is a state to wait out, not a fault
    """A destination cannot be reached or takes nothing at all now; no image is to blame."""


def send(destination: Destination, paths: Iterable[Path], *, ae_title: str) -> Generator[str, None, None]:
    """Send files one by one; gives for each an empty string where it was taken, else the reason why not.

    Raises DestinationDown where there is no way to send, also between two files: what was not answered was not sent.
    """
    match destination:
        case DicomDestination():
            yield from _store(destination, paths, ae_title=ae_title)
        case StowDestination():
            yield from _stow(destination, paths)


def check_destination(destination: Destination) -> None:
    """Read the files that a destination's configuration names.

    Raises UsageError where one cannot be used, RefusedError where others can read what should be secret.
    """
    if destination.tls is not None:
        _tls_context(destination.tls)
    if isinstance(destination, StowDestination):
        _headers(destination)


def _tls_context(tls: ClientTls) -> ssl.SSLContext:
    """TLS 1.2 or later: archives are not all of today."""
    return client_context(authority=tls.ca, certificate=tls.certificate, key=tls.key, least=ssl.TLSVersion.TLSv1_2)


def _store(destination: DicomDestination, paths: Iterable[Path], *, ae_title: str) -> Iterator[str]:
    with _association(destination, ae_title) as association:
        for path in paths:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    dataset: Dataset = dcmread(path)
                    sop_class = dataset.SOPClassUID
                except Exception:  # pydicom raises anything on damaged files
                    yield "its file is missing or damaged"
                    continue
                accepted = [
                    context.transfer_syntax[0]
                    for context in association.accepted_contexts
                    if context.abstract_syntax == sop_class
                ]
                if not accepted:
                    yield "it takes no objects of this SOP class"
                    continue
                # An archive that knows only what all must know gets it re-encoded, without loss (PS3.5 A.1).
                dataset = _encoded_as(accepted[0], dataset)
                try:
                    status = association.send_c_store(dataset)
                except (RuntimeError, ValueError) as error:
                    if not association.is_established:
                        raise DestinationDown("the association ended") from None
                    yield f"it could not be sent ({type(error).__name__})"
                    continue
            code = status.get("Status")
            if code is None:
                raise DestinationDown("no answer came, or the association was aborted")
            yield "" if code == 0 or code in _WARNINGS else f"it answered with status {code:04X}"


def _encoded_as(syntax: UID, dataset: Dataset) -> Dataset:
    if dataset.file_meta.TransferSyntaxUID == syntax:
        return dataset
    dataset.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    stream.seek(0)
    return dcmread(stream)


@contextlib.contextmanager
def _association(destination: DicomDestination, ae_title: str) -> Iterator[Association]:
    entity = AE(ae_title=ae_title)
    entity.implementation_class_uid = UID(IMPLEMENTATION_UID)
    entity.implementation_version_name = "VEILRAY"
    entity.connection_timeout = entity.acse_timeout = CONNECT_SECONDS
    entity.dimse_timeout = entity.network_timeout = ANSWER_SECONDS
    for sop_class in SOP_CLASSES:
        entity.add_requested_context(sop_class, [_EXPLICIT, _IMPLICIT])
    options: dict[str, Any] = {}
    if destination.tls is not None:
        options["tls_args"] = (_tls_context(destination.tls), destination.host)
    options["evt_handlers"] = [(evt.EVT_DATA_SENT, _sent)]
    association = entity.associate(destination.host, destination.port, ae_title=destination.ae_title, **options)
    connection = association.dul.socket.socket if association.dul.socket else None
    try:
        if not association.is_established:
            raise DestinationDown("rejected" if association.is_rejected else "no connection")
        yield association
    finally:
        if association.is_established:
            association.release()
        if connection is not None:
            connection.close()  # which pynetdicom leaves open where the other side closed first


def _sent(event: Event) -> None:
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        wait_for_no_acknowledgement(connection.socket)


def _stow(destination: StowDestination, paths: Iterable[Path]) -> Iterator[str]:
    verify: ssl.SSLContext | bool = _tls_context(destination.tls) if destination.tls else True
    headers = _headers(destination)
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    # The configuration alone says where images go: no proxies, authorities or passwords out of the environment.
    with httpx.Client(
        verify=verify, timeout=timeout, headers=headers, follow_redirects=False, trust_env=False
    ) as client:
        for path in paths:
            boundary = secrets.token_hex(16)
            try:
                body = _part(path.read_bytes(), boundary)
            except OSError:
                yield "its file is missing or damaged"
                continue
            try:
                answer = client.post(
                    f"{destination.url.rstrip('/')}/studies",
                    content=body,
                    headers={
                        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                        "Accept": "application/dicom+json",
                    },
                )
            except httpx.HTTPError as error:
                raise DestinationDown(f"no connection ({type(error).__name__})") from None
            # 500 is what many archives answer where they choke on the object: it counts against the image.
            if answer.status_code in (401, 403, 404, 408, 429, 502, 503, 504):
                raise DestinationDown(f"it answered with {answer.status_code}")
            yield "" if _stored(answer) else f"it answered with {answer.status_code}"


def _part(data: bytes, boundary: str) -> bytes:
    """One object as a multipart/related body (PS3.18 8.6.1.2)."""
    body = io.BytesIO()
    body.write(f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode())
    body.write(data)
    body.write(f"\r\n--{boundary}--\r\n".encode())
    return body.getvalue()


def _stored(answer: httpx.Response) -> bool:
    """Whether the one instance was stored, with warnings or without (PS3.18 10.5.3): 200, or 202 that lists it.

    The Failed SOP Sequence (0008,1198) speaks against it, and 202 needs the Referenced SOP Sequence (0008,1199).
    """
    try:
        listed = answer.json()
    except ValueError:
        listed = None
    said = listed if isinstance(listed, dict) else {}
    failed, stored = (bool(said.get(tag, {}).get("Value")) for tag in ("00081198", "00081199"))
    return not failed and (answer.status_code == 200 or (answer.status_code == 202 and stored))


def unprotected(destination: Destination) -> str:
    """What whoever listens on the way to a destination can read; empty where it goes by TLS or stays on the machine."""
    match destination:
        case DicomDestination():
            host, plain, more = destination.host, destination.tls is None, ""
        case StowDestination():
            url = urlsplit(destination.url)
            host, plain = url.hostname or "", url.scheme == "http"
            more = ", and its Authorization header" if destination.authorization_file else ""
    return f"images go to {destination.name} without TLS{more}" if plain and host not in LOOPBACK else ""


def _headers(destination: StowDestination) -> dict[str, str]:
    if destination.authorization_file is None:
        return {}
    path = destination.authorization_file
    try:
        with path.open(encoding="ascii") as stream:
            check_private(path, os.fstat(stream.fileno()))
            text = stream.read().strip()
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path} cannot be read: one line, such as Bearer ..., is wanted") from None
    if not text or "\n" in text:
        raise UsageError(f"{path} does not hold one line")
    return {"Authorization": text}
