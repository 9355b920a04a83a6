"""The ledger's releases and events, as they are listed."""

from __future__ import annotations

import json
import sqlite3

from veilray.exchange.ledger.records import Event, ModelLine, Release, ReleaseLine

_RELEASES = """
SELECT id, receivers, mode, source, noise_id, clip, made, status, images,
       (SELECT COALESCE(MIN(std), 0) FROM given WHERE given.release = id), weights, trained_on, patients, mean, digest
FROM releases LEFT JOIN models ON models.release = id ORDER BY made, releases.rowid
"""


def list_releases(connection: sqlite3.Connection) -> list[ReleaseLine]:
    """Every release, oldest first."""
    return [
        ReleaseLine(
            release=Release(
                release_id=row[0],
                receivers=tuple(json.loads(row[1])),
                mode=row[2],
                source=row[3],
                noise_id=row[4],
                clip=bool(row[5]),
                mean=row[13],
            ),
            made=row[6],
            status=row[7],
            images=row[8],
            least_std=row[9],
            digest=row[14],
            model=None if row[10] is None else ModelLine(weights_sha256=row[10], trained_on=row[11], patients=row[12]),
        )
        for row in connection.execute(_RELEASES)
    ]


def list_events(connection: sqlite3.Connection) -> list[Event]:
    """All that happened, oldest first."""
    rows = connection.execute("SELECT at, release, what, name, reason FROM events ORDER BY rowid")
    return [Event(at=row[0], release_id=row[1], what=row[2], name=row[3], reason=row[4]) for row in rows]
