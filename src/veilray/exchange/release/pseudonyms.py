"""Names that a release carries in place of ids: a keyed hash, so that Site One alone can lead them back.

HMAC-SHA-256 (RFC 2104, FIPS 180-4) cut to 128 bits. The key stays at Site One and differs for each receiver, so two
receivers cannot match their patients by name. The same id always gets the same name, which is what lets a denoised
image find its original; whoever has the key can try ids.
"""

from __future__ import annotations

import hmac

from veilray.errors import UsageError

_BYTES = 16


class Pseudonyms:
    """Pseudonyms of one site for one receiver: 32 hexadecimal digits each."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) < 32:
            raise UsageError("a key for pseudonyms has 32 bytes or more")
        self._key = bytes(key)

    def patient(self, issuer: str, patient: str) -> str:
        """Pseudonym of a patient, by Issuer of Patient ID (0010,0021), empty if unknown, and Patient ID (0010,0020)."""
        return self._name("patient", issuer, patient)

    def cohort_patient(self, patient_id: str) -> str:
        """Pseudonym of a patient as a cohort's index names one: `ID^^^ISSUER`, or the id alone."""
        patient, _, issuer = patient_id.rpartition("^^^") if "^^^" in patient_id else (patient_id, "", "")
        return self.patient(issuer, patient)

    def study(self, uid: str) -> str:
        """Pseudonym of a study, by Study Instance UID (0020,000D); empty where that is."""
        return self._name("study", uid) if uid else ""

    def image(self, image_id: str) -> str:
        """Pseudonym of an image, by its id in the cohort: the SOP Instance UID (0008,0018) of a DICOM image."""
        return self._name("image", image_id)

    def __repr__(self) -> str:
        return "Pseudonyms(key not shown)"

    def _name(self, *parts: str) -> str:
        mac = hmac.new(self._key, digestmod="sha256")
        for part in ("veilray pseudonym 1", *parts):
            data = part.encode("utf-8", "surrogatepass")
            mac.update(len(data).to_bytes(8, "big") + data)
        return mac.digest()[:_BYTES].hex()
