"""Source and sink as `upwell reconcile` reads them: checksums of ranges, rows in one order, single keys.

Each call is one statement, or one snapshot, and no transaction is left open: nobody waits for these reads but who takes
a table for himself.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psycopg
from psycopg import sql

from connectors.postgres.layout import record_table
from connectors.postgres.printed_columns import Printed, key_json, names_key, printed, row_text
from connectors.postgres.source import Connection, SourceColumn, TableInfo, source_errors
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.change import Version
from schemas.errors import SettingsError
from schemas.names import canonical_key
from schemas.reconcile import Checksum, Keyed, Seen, Stored

T = TypeVar("T")

SQL: Final = Queries.load("reconcile")
SINK: Final = Queries.load("sink")
#: Rows of one trip while ranges are narrowed down, and keys of one statement.
TRIP: Final = 2000
KEYS: Final = 500
GENERATED: Final = "generated columns are not sent"
ABSENT: Final = "the source has no such column"
JSON: Final = "it holds JSON that jsonb cannot hold"
PRINTED: Final = "source and sink may print type {} otherwise"


@dataclass(frozen=True, slots=True)
class Compared:
    """What is compared of a table. `left_out`: needed columns that are not, with the reason."""

    table: TableInfo
    columns: Sequence[Printed]
    left_out: Mapping[str, str]

    @property
    def key(self) -> tuple[SourceColumn, ...]:
        return self.table.key


def compared(connection: Connection, table: TableInfo, needed: Collection[str]) -> Compared:
    """Which of the needed columns can be. Raises SettingsError for a key that cannot, SourceUnavailable."""
    quoted = sql.Identifier(*table.table.split(".")).as_string(connection)
    with source_errors():
        found = connection.execute(SQL["source_columns"], {"table": quoted}).fetchall()
    foreign = {name: None if domain else other for name, domain, other in found}
    for column in table.key:
        if not names_key(column) or printed(column, foreign.get(column.name)) is None:
            raise SettingsError(
                f"{table.table}: its key has type {column.type}, by which nothing can be compared"
            )
    by_name = {column.name: column for column in table.columns}
    columns: list[Printed] = []
    left_out: dict[str, str] = {}
    for name in sorted(needed):
        known = by_name.get(name)
        how = None if known is None or known.generated else printed(known, foreign.get(name))
        if how is None:
            left_out[name] = _why(known, foreign.get(name))
        elif known is not None and known.type == "json" and _troubled(connection, table.table, name):
            left_out[name] = JSON
        else:
            columns.append(how)
    return Compared(table, columns, left_out)


def _why(column: SourceColumn | None, foreign_type: str | None) -> str:
    if column is None:
        return ABSENT
    return GENERATED if column.generated else PRINTED.format(foreign_type or column.type)


def _troubled(connection: Connection, table: str, column: str) -> bool:
    query = SQL.filled(
        "troubled_json", table=sql.Identifier(*table.split(".")), column=sql.Identifier("t", column)
    )
    with source_errors():
        row = connection.execute(query).fetchone()
    return bool(row and row[0])


def streamed(
    connection: psycopg.Connection[Any], query: sql.Composed, parameters: Mapping[str, Any]
) -> Iterator[tuple[Any, ...]]:
    """Rows through a cursor of the server's, in a transaction of its own: memory for one trip."""
    with connection.transaction(), connection.cursor(name="upwell_reconcile") as cursor:
        cursor.itersize = TRIP
        cursor.execute(query, parameters)
        yield from cursor


def batches(items: Sequence[T], size: int = KEYS) -> Iterator[Sequence[T]]:
    """So many at a time, in order."""
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _keyed(connection: psycopg.Connection[Any], rows: sql.Composed, ranges: Sequence[int]) -> Iterator[Any]:
    """The rows of ranges, in the order of places."""
    return streamed(connection, SQL.filled("keyed", rows=rows), {"ranges": list(ranges)})


def _checksums(connection: psycopg.Connection[Any], rows: sql.Composed) -> dict[int, Checksum]:
    found = connection.execute(SQL.filled("checksums", rows=rows)).fetchall()
    return {number: Checksum(count, bits) for number, count, bits in found}


class SourceRows:
    """The table at the source. Over an autocommit connection, which can write nothing from here on."""

    def __init__(self, connection: Connection, what: Compared) -> None:
        self._connection, self._what = connection, what
        with source_errors():
            connection.execute(SQL["session"])
            connection.execute("SET default_transaction_read_only = on")
        keys = [_own(column.name) for column in what.key]
        parts = dict(zip((column.name for column in what.key), keys, strict=True))
        shown = [
            sql.SQL("{}::text").format(_cast(value, column))
            for column, value in zip(what.key, keys, strict=True)
        ]
        row = [*shown, *(each.of(_own(each.name)) for each in what.columns), sql.SQL("NULL")]
        names = [key_json(column, parts[column.name]) for column in what.key]
        self._rows = SQL.filled(
            "source_rows",
            key=row_text(shown),
            row=row_text(row),
            canonical=sql.SQL("jsonb_build_array({})::text").format(sql.SQL(", ").join(names)),
            table=sql.Identifier(*what.table.table.split(".")),
        )

    def checksums(self) -> dict[int, Checksum]:
        """By range. Raises SourceUnavailable."""
        with source_errors():
            return _checksums(self._connection, self._rows)

    def rows(self, ranges: Sequence[int]) -> Generator[Keyed, None, None]:
        """In the order of places. Raises SourceUnavailable."""
        with source_errors():
            for place, name, digest in _keyed(self._connection, self._rows, ranges):
                yield Keyed(place, _canonical(name), digest)

    def read(self, keys: Mapping[str, int | None]) -> dict[str, Seen]:
        """Single keys, each with the transaction that must be visible; of one snapshot for KEYS at a time."""
        found: dict[str, Seen] = {}
        for some in batches(list(keys)):
            with source_errors(), self._connection.transaction():
                self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                rows = self._connection.execute(
                    SQL.filled("source_keys", rows=self._rows, keys=self._condition(some))
                ).fetchall()
                transactions = {"transactions": [keys[key] for key in some]}
                visible = self._connection.execute(SQL["visible"], transactions).fetchall()
            digests = {_canonical(name): digest for name, digest in rows}
            found |= {key: Seen(digests.get(key), row[0]) for key, row in zip(some, visible, strict=True)}
        return found

    def inserted_lsn(self) -> int:
        """Where the log ends with all that was visible before, in bytes."""
        with source_errors():
            row = self._connection.execute(SQL["inserted_lsn"]).fetchone()
        assert row is not None
        return int(row[0])

    def _condition(self, keys: Sequence[str]) -> sql.Composed:
        """Literals of unknown type take the columns' types, so the key's index is used."""
        columns = sql.SQL(", ").join(_own(column.name) for column in self._what.key)
        tuples = [
            sql.SQL("({})").format(
                sql.SQL(", ").join(sql.Literal(_literal(value)) for value in json.loads(key))
            )
            for key in keys
        ]
        return sql.SQL("({}) IN ({})").format(columns, sql.SQL(", ").join(tuples))


class SinkRows:
    """The records in the sink."""

    def __init__(
        self, connection: psycopg.Connection[Any], collection: str, what: Compared, metadata: Collection[str]
    ) -> None:
        """`metadata`: columns that the view shows besides the key."""
        self._connection, self._collection = connection, collection
        with sink_errors():
            connection.execute(SQL["session"])
            own = connection.execute(
                SINK["column_types"], {"table": f"upwell.record_{collection}"}
            ).fetchall()
        there = {name for name, _ in own}
        record = record_table(collection)
        self._key = [_part_of_key(number, column) for number, column in enumerate(what.key)]
        keys = [sql.SQL("{}::text").format(value) for value in self._key]
        columns = [each.of_declared(sql.Identifier("p", each.name)) for each in what.columns]
        by_name = dict(zip((each.name for each in what.columns), columns, strict=True))
        shown = [each for each in what.columns if each.name in there and each.name in metadata]
        key_names = [column.name for column in what.key]
        right = [*keys, *(by_name[each.name] for each in shown if each.name not in key_names)]
        stored = [
            *(sql.SQL("{}::text").format(_cast(_own(column.name), column)) for column in what.key),
            *(each.of(_own(each.name)) for each in shown if each.name not in key_names),
        ]
        torn = sql.SQL("CASE WHEN ROW({}) IS DISTINCT FROM ROW({}) THEN 'torn' END").format(
            sql.SQL(", ").join(stored), sql.SQL(", ").join(right)
        )
        declared: list[sql.Composable] = [
            sql.SQL("{} {}").format(sql.Identifier(each.name), _type(each.declared)) for each in what.columns
        ]
        self._parts: dict[str, sql.Composable] = {
            "row": row_text([*keys, *columns, torn]),
            "record": record,
            "types": sql.SQL(", ").join(declared or [sql.SQL("_none text")]),
        }
        self._rows = SQL.filled("sink_rows", key=row_text(keys), **self._parts)

    def checksums(self) -> dict[int, Checksum]:
        """By range. Raises SinkUnavailable."""
        with sink_errors():
            return _checksums(self._connection, self._rows)

    def rows(self, ranges: Sequence[int]) -> Generator[Keyed, None, None]:
        """In the order of places. Raises SinkUnavailable."""
        with sink_errors():
            for place, name, digest in _keyed(self._connection, self._rows, ranges):
                yield Keyed(place, name, digest)

    def read(self, keys: Collection[str]) -> dict[str, Stored]:
        """Single keys; what is not there has no version."""
        found = dict.fromkeys(keys, Stored())
        query = SQL.filled("stored", **self._parts)
        for some in batches(list(keys)):
            parameters = {"collection": self._collection, "keys": some}
            with sink_errors():
                rows = self._connection.execute(query, parameters).fetchall()
            for key, lineage, offset, deleted, digest, transaction_id, in_doubt in rows:
                found[key] = Stored(Version(lineage, offset), deleted, digest, transaction_id, in_doubt)
        return found

    def notes(self, keys: Collection[str]) -> dict[str, list[str]]:
        """What is known to be open of keys, in words."""
        found: dict[str, list[str]] = {}
        with sink_errors():
            parameters = {"collection": self._collection, "keys": list(keys)}
            for key, note in self._connection.execute(SQL["notes"], parameters).fetchall():
                found.setdefault(key, []).append(note)
        return found


def _own(name: str) -> sql.Identifier:
    return sql.Identifier("t", name)


def _type(name: str) -> sql.SQL:
    return sql.SQL(name)  # of the catalog, and only such as `printed` knows


def _cast(value: sql.Composable, column: SourceColumn) -> sql.Composed:
    return sql.SQL("({}::{})").format(value, _type(column.type))


def _part_of_key(number: int, column: SourceColumn) -> sql.Composed:
    """The identity of a record is its canonical key, whatever its columns say."""
    return sql.SQL("((t._key::jsonb ->> {})::{})").format(sql.Literal(number), _type(column.type))


def _canonical(name: str) -> str:
    return canonical_key(json.loads(name))


def _literal(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
