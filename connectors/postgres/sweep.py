"""The sweep: rows that a whole scan of the source did not bring again are removed (DESIGN 6).

A re-snapshot emits no deletes: without the sweep, rows that were deleted while nobody listened stay as ghosts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from connectors.postgres.layout import record_table
from connectors.postgres.removal import SQL as SINK
from connectors.postgres.removal import make_markers
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors

SQL: Final = Queries.load("sweep")
BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Scan:
    """A whole scan that has succeeded and is taken in. `starts`: end offsets by partition, from before it was asked
    for.
    """

    collection: str
    lineage: int
    starts: Mapping[str, int]

    @property
    def parameters(self) -> dict[str, Any]:
        return {"collection": self.collection, "lineage": self.lineage, "starts": Jsonb(dict(self.starts))}


class Sweep:
    """Over an autocommit connection. Raises SinkUnavailable, Conflict."""

    def __init__(self, connection: psycopg.Connection[Any], scan: Scan) -> None:
        self._connection, self._scan = connection, scan
        parts = {"record": record_table(scan.collection), "unseen": SQL["condition"]}
        self._unseen, self._lock = (SQL.filled(name, **parts) for name in ("unseen", "lock_unseen"))

    def unseen(self) -> int:
        """Rows that the scan did not bring again."""
        return self._number(self._unseen)

    def unknown_letters(self) -> int:
        """Open dead letters that may be any key's: while there is one, nothing may be swept."""
        return self._number(SQL["unknown_letters"])

    def run(self, tell: Callable[[int], None] = lambda removed: None) -> int:
        """Remove them a batch at a time, each alone on the collection; returns how many. Killed, it can be run again.

        `tell` hears the sum after each batch. Not to be run while there are `unknown_letters`.
        """
        removed, after = 0, ""
        while True:
            with sink_errors(), self._connection.transaction():
                self._connection.execute(SINK["lock_collection_alone"], self._scan.parameters)
                batch = {**self._scan.parameters, "after": after, "limit": BATCH}
                rows = self._connection.execute(self._lock, batch).fetchall()
                if not rows:
                    break
                keys = [row[0] for row in rows]
                make_markers(self._connection, self._scan.collection, keys, "swept: not in the source")
                versions = {"lineages": [row[1] for row in rows], "offsets": [row[2] for row in rows]}
                self._connection.execute(
                    SINK["close_absent_dead_letters"], {**self._scan.parameters, "keys": keys, **versions}
                )
            removed, after = removed + len(keys), keys[-1]
            tell(removed)
        with sink_errors():
            self._connection.execute(SQL["close_ended_letters"], self._scan.parameters)
        return removed

    def _number(self, query: sql.SQL | sql.Composed) -> int:
        with sink_errors():
            row = self._connection.execute(query, self._scan.parameters).fetchone()
        assert row is not None
        return int(row[0])
