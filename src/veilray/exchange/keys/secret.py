"""Bytes that must not show: not in a log, a traceback, an argument or a pickle."""

from __future__ import annotations

import hmac
from typing import NoReturn, final

from veilray.errors import UsageError


@final
class Secret:
    """Holds secret bytes; only `reveal` gives them out, by name."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._value

    def derive(self, purpose: str, *parts: bytes) -> Secret:
        """Another secret of 32 bytes: HMAC-SHA-256 (RFC 2104) over `purpose` and `parts`, each with its length."""
        mac = hmac.new(self._value, digestmod="sha256")
        for part in (purpose.encode(), *parts):
            mac.update(len(part).to_bytes(8, "big") + part)
        return Secret(mac.digest())

    def __repr__(self) -> str:
        return f"Secret({len(self._value)} bytes, not shown)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        raise TypeError("a Secret cannot be hashed")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied")


def read_passphrase(text: str, *, source: str) -> Secret:
    """A passphrase from a file or a prompt, without its line end; UsageError where it is empty or of several lines."""
    line = text.removesuffix("\n").removesuffix("\r")
    if not line.strip() or "\n" in line:
        raise UsageError(f"{source}: a passphrase is one line that is not empty")
    return Secret(line.encode())
