"""Keys that must be looked for at the source again (H9): the sink's side of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from connectors.postgres.capture_state import AGAIN_SECONDS, connect_sink
from connectors.postgres.layout import record_table
from connectors.postgres.removal import make_markers
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.change import Version

SQL: Final = Queries.load("sink")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One key in the version that its record had. `transaction_id`: who wrote that version, if it is known.

    `current` is False when the record has moved on meanwhile: then nothing is left to do.
    """

    key: str
    version: Version
    transaction_id: int | None
    current: bool


@dataclass(frozen=True, slots=True)
class ReReadable:
    """A collection with wanted keys; `allowed` says whether a signal may be sent for its table now."""

    name: str
    table: str
    key_columns: Sequence[str]
    allowed: bool

    def key(self, text: str) -> Mapping[str, object]:
        """Key columns with their values, of a key as the sink writes it."""
        return dict(zip(self.key_columns, json.loads(text), strict=True))


class Repairs:
    """What is wanted, and what was done about it. One process at a time works on it."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    @classmethod
    @contextlib.contextmanager
    def alone(cls, dsn: str) -> Iterator[Repairs | None]:
        """For one process at a time, until it ends; None while another has it. Raises SinkUnavailable."""
        with connect_sink(dsn) as connection, sink_errors():
            taken = connection.execute(SQL["try_lock_signals"]).fetchone()
            yield cls(connection) if taken is not None and taken[0] else None

    def collections(self) -> list[ReReadable]:
        """Those with wanted keys."""
        return [
            ReReadable(row["name"], row["table_name"], row["key_columns"], row["allowed"])
            for row in self._rows(SQL["re_readable"])
        ]

    def wanted(self, collection: str) -> list[Wanted]:
        """At most 100 that nobody looked for within AGAIN_SECONDS, never looked for first."""
        query = SQL.filled("wanted_repairs", record=record_table(collection))
        found = self._rows(query, {"collection": collection, "again_seconds": AGAIN_SECONDS})
        return [
            Wanted(row["key"], Version(row["lineage"], row["offset"]), row["_transaction_id"], row["wanted"])
            for row in found
        ]

    def looked_at(self, collection: str, keys: Collection[Wanted], *, asked: bool) -> None:
        """The source has them. `asked`: a re-read is sent for now, its rows may overwrite streamed ones."""
        self._execute("looked_at_repairs", {**_arrays(collection, keys), "asked": asked})

    def drop(self, collection: str, keys: Collection[Wanted]) -> None:
        """Nothing is left to do for them."""
        self._execute("drop_repairs", _arrays(collection, keys))

    def remove(self, collection: str, keys: Collection[Wanted]) -> Sequence[str]:
        """The source does not have them: what is still in that version becomes a marker. Returns those keys."""
        record = record_table(collection)
        arrays = _arrays(collection, keys)
        with sink_errors(), self._connection.transaction():
            self._execute("lock_collection", {"collection": collection})
            absent = self._rows(SQL.filled("lock_absent", record=record), arrays)
            gone = [row["_key"] for row in absent]
            make_markers(self._connection, collection, gone, "absent when read again")
            self._execute("close_absent_dead_letters", arrays)
            self._execute("drop_repairs", arrays)
        return gone

    def _rows(self, query: sql.SQL | sql.Composed, parameters: Row | None = None) -> list[dict[str, Any]]:
        with sink_errors(), self._connection.cursor(row_factory=dict_row) as cursor:
            return list(cursor.execute(query, parameters))

    def _execute(self, query: str, parameters: Row) -> None:
        with sink_errors():
            self._connection.execute(SQL[query], parameters)


def _arrays(collection: str, keys: Collection[Wanted]) -> dict[str, Any]:
    return {
        "collection": collection,
        "keys": [each.key for each in keys],
        "lineages": [each.version.lineage for each in keys],
        "offsets": [each.version.offset for each in keys],
    }
