"""The receiving half of the node: C-STORE and C-ECHO for radiographs that are meant to be looked at."""

from __future__ import annotations

import io
import logging
import shutil
import ssl
import threading
import warnings
from typing import TYPE_CHECKING, Any

from pynetdicom import evt
from pynetdicom.dimse_primitives import C_STORE

from veilray.clinic.bounds import Allowance, BoundedSocket
from veilray.clinic.config import NodeConfig, ServerTls
from veilray.clinic.counters import Counters
from veilray.clinic.journal import LOG_NAME
from veilray.clinic.listener import BoundedEntity, BoundedServer
from veilray.clinic.queue import Queue
from veilray.errors import VeilrayError
from veilray.exchange.tls import server_context
from veilray.images.derived import IMPLEMENTATION_UID, is_derived
from veilray.images.dicom_pixels import TRANSFER_SYNTAXES
from veilray.images.header import printable

if TYPE_CHECKING:
    from pydicom import Dataset
    from pynetdicom.association import Association
    from pynetdicom.events import Event

LOG = logging.getLogger(LOG_NAME)

SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1")
"""Computed Radiography, and Digital X-Ray For Presentation (PS3.4 B.5)."""
_VERIFICATION = "1.2.840.10008.1.1"
_ANNOUNCED_PDU = 1 << 18

# PS3.4 table B.2-1, PS3.7 C.5.
SUCCESS = 0x0000
DUPLICATE = 0x0111
OUT_OF_RESOURCES = 0xA700
NOT_OF_ITS_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000

_ENDS = {
    "too_large": "too many bytes",
    "too_slow": "an object or a unit came too slowly",
    "idle": "its association was silent",
    "no_request": "it never asked for an association",
}


class Receiver:
    """Listens, and puts what it takes into the queue; success is answered when the image is on the disk."""

    def __init__(self, config: NodeConfig, queue: Queue, counters: Counters) -> None:
        self._config, self._queue, self._counters = config, queue, counters
        entity = BoundedEntity(ae_title=config.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_UID
        entity.implementation_version_name = "VEILRAY"
        entity.require_called_aet = True
        entity.require_calling_aet = list(config.calling)
        entity.maximum_associations = config.max_associations
        entity.maximum_pdu_size = _ANNOUNCED_PDU
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = config.timeout_seconds
        entity.add_supported_context(_VERIFICATION)
        for sop_class in SOP_CLASSES:
            entity.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
        self._server = BoundedServer(
            entity,
            (config.host, config.port),
            ssl_context=_tls_context(config.tls) if config.tls else None,
            handlers=[
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_C_ECHO, self._echo),
                (evt.EVT_ACCEPTED, self._accepted),
                (evt.EVT_REJECTED, self._rejected),
            ],
            allowance=Allowance(each=config.max_object_mib << 20, together=config.max_receiving_mib << 20),
            seconds=config.timeout_seconds,
            refused=self._refused,
            ended=self._ended,
        )
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True)

    def start(self) -> None:
        """Begin to accept connections."""
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting, and abort associations: what was not answered stays with its sender."""
        for association in self._server.active_associations:
            association.abort()
        self._server.shutdown()
        self._thread.join(timeout=10)

    def _store(self, event: Event) -> int:
        try:
            return self._take(event)
        except VeilrayError as error:
            LOG.error("an image could not be stored: %s", error)
        except OSError as error:
            LOG.error("an image could not be stored: %s", error.strerror or type(error).__name__)
        finally:
            _whole(event)
        return self._no("storage", event, OUT_OF_RESOURCES)

    def _echo(self, event: Event) -> int:
        _whole(event)
        return SUCCESS

    def _take(self, event: Event) -> int:
        if self._full():
            return self._no("full", event, OUT_OF_RESOURCES)
        data = event.encoded_dataset()
        header = _header(data)
        if header is None:
            return self._no("damaged", event, CANNOT_UNDERSTAND)
        uid = str(header.get("SOPInstanceUID") or "")
        request = event.request
        assert isinstance(request, C_STORE)
        named = (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID)
        if named != (header.get("SOPClassUID"), uid) or header.get("PresentationIntentType") == "FOR PROCESSING":
            return self._no("mismatch", event, NOT_OF_ITS_CLASS)
        name = self._queue.name_of(uid)
        if is_derived(header):
            self._counters.add("ignored")
            LOG.info("image %s from %s: derived by Veilray, ignored", name[:12], _caller(event))
            return SUCCESS
        match self._queue.accept(uid, data):
            case "new":
                self._counters.add("received")
                LOG.info("image %s from %s: queued, %d bytes", name[:12], _caller(event), len(data))
            case "known":
                self._counters.add("repeated")
                LOG.info("image %s from %s: here before", name[:12], _caller(event))
            case "other":
                return self._no("duplicate", event, DUPLICATE)
        return SUCCESS

    def _full(self) -> bool:
        waiting, _ = self._queue.backlog()
        free = shutil.disk_usage(self._config.state).free
        return waiting >= self._config.max_queue or free < self._config.min_free_mib << 20

    def _no(self, reason: str, event: Event, status: int) -> int:
        self._counters.add("refused", reason)
        LOG.warning("an object from %s refused: %s (%04X)", _caller(event), reason, status)
        return status

    def _accepted(self, event: Event) -> None:
        for context in event.assoc.rejected_contexts:
            self._counters.add("refused", "sop_class")
            LOG.warning("association of %s: %s refused", _caller(event), printable(str(context.abstract_syntax)))

    def _rejected(self, event: Event) -> None:
        self._counters.add("refused", "association")
        LOG.warning("association of %s rejected", _caller(event))

    def _ended(self, association: Association, reason: str) -> None:
        self._counters.add("refused", reason)
        LOG.warning("connection of %s closed: %s", _named(association), _ENDS[reason])

    def _refused(self, reason: str, address: Any) -> None:
        self._counters.add("refused", reason)
        LOG.warning("connection from %s refused: %s", address[0], reason)


def _tls_context(tls: ServerTls) -> ssl.SSLContext:
    """TLS 1.2 or later (PS3.15 B.9, BCP 195); senders' certificates are asked for where their authorities are named."""
    return server_context(certificate=tls.certificate, key=tls.key, authority=tls.ca, least=ssl.TLSVersion.TLSv1_2)


def _header(data: bytes) -> Dataset | None:
    """The data set without its pixels; None where it cannot be read."""
    from pydicom import dcmread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = dcmread(io.BytesIO(data), stop_before_pixels=True)
            is_derived(header)  # elements are read late: what it looks at must be readable
            str(header.get("SOPInstanceUID")), str(header.get("SOPClassUID"))
        except Exception:  # pydicom raises anything on damaged data
            return None
    return header


def _whole(event: Event) -> None:
    connection = event.assoc.dul.socket
    if isinstance(connection, BoundedSocket):
        connection.whole()
    # pynetdicom counts its sender's silence from the last unit that came, and so all of this node's own work.
    event.assoc.dul._idle_timer.restart()


def _caller(event: Event) -> str:
    return _named(event.assoc)


def _named(association: Association) -> str:
    title = printable(association.requestor.ae_title or "").strip() or "an unknown title"
    return f"{title} at {association.requestor.address}"
