"""What ended without success in the node's queue, and what an operator makes of it: another try, or an end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from veilray.clinic.database import Database


@dataclass(frozen=True, kw_only=True)
class Letter:
    """What an operator should look at: an image or a delivery that ended without success."""

    name: str
    state: str
    destination: str
    """Empty where the image never became a derived object."""
    reason: str


class GivenUp:
    """Kept images, dead images and dead letters of one queue."""

    def __init__(self, database: Database, received: Path, finish: Callable[[], None]) -> None:
        self._database = database
        self._received = received
        self._finish = finish
        """Lets go of images that every destination has."""

    def retry_kept(self) -> int:
        """Put kept images back, as after a change of the model; gives how many. Those without a file are forgotten."""
        with self._database.writing() as database:
            rows = database.execute("SELECT id, name FROM images WHERE state = 'kept'").fetchall()
            there = [(number,) for number, name in rows if (self._received / f"{name}.dcm").exists()]
            database.executemany(
                "UPDATE images SET state = 'waiting', attempts = 0, reason = '', ended = NULL WHERE id = ?", there
            )
            database.execute("DELETE FROM images WHERE state = 'kept'")
        return len(there)

    def discard_kept(self) -> int:
        """Delete kept images, files and all; gives how many. Sent again, they are new."""
        return self._discard("kept")

    def discard_dead(self, destination: str | None = None) -> int:
        """Drop dead letters, of one destination or all, and with all the dead images too; gives how many.

        An image whose last letter goes has been delivered as far as it ever will be: its files go.
        """
        with self._database.writing() as database:
            letters = database.execute(
                "DELETE FROM deliveries WHERE state = 'dead' AND (? IS NULL OR destination = ?)",
                (destination, destination),
            ).rowcount
        self._finish()
        return letters + (self._discard("dead") if destination is None else 0)

    def _discard(self, state: str) -> int:
        with self._database.writing() as database:
            rows = database.execute("SELECT name FROM images WHERE state = ?", (state,)).fetchall()
            for (name,) in rows:
                # Before its row goes: from then on the same image may be received anew, under the same name.
                (self._received / f"{name}.dcm").unlink(missing_ok=True)
            database.execute("DELETE FROM images WHERE state = ?", (state,))
        return len(rows)

    def retry_dead(self) -> int:
        """Put dead letters and dead images back; gives how many. Kept images stay."""
        with self._database.writing() as database:
            images = database.execute(
                "UPDATE images SET state = 'waiting', attempts = 0, reason = '', ended = NULL WHERE state = 'dead'"
            ).rowcount
            letters = database.execute(
                "UPDATE deliveries SET state = 'due', tries = 0, due = 0 WHERE state = 'dead'"
            ).rowcount
        return images + letters

    def letters(self) -> Iterator[Letter]:
        """Kept and dead images and dead letters, oldest first."""
        rows = self._database.rows(
            "SELECT name, state, '', reason, id FROM images WHERE state IN ('kept', 'dead') UNION ALL "
            "SELECT name, 'dead letter', destination, deliveries.reason, images.id FROM deliveries "
            "JOIN images ON images.id = image WHERE deliveries.state = 'dead' ORDER BY 5"
        )
        for name, state, destination, reason, _ in rows:
            yield Letter(name=name, state=state, destination=destination, reason=reason)
