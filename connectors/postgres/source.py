"""The source database: what its catalog says about tables, and whether they can be captured at all."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from connectors.debezium.naming import check_tables
from connectors.postgres import login
from connectors.postgres.sql import Queries
from schemas.errors import SettingsError, SourceRefused, SourceUnavailable

LEAST_VERSION: Final = 140_000
#: A walsender ends a moment after its client.
SLOT_SECONDS: Final = 30.0
SQL: Final = Queries.load("source")

#: Types of Postgres of which Debezium sends nothing, or something else (infra/decisions/0014).
_NOT_SENT: Final = re.compile(
    r"bit varying.*|(money|interval|bit|point)\b.*\[\]|(box|circle|line|lseg|path|polygon)(\[\])?"
    r"|(tsquery|jsonpath|pg_lsn|pg_snapshot|txid_snapshot|xid8?|cid|tid|reg\w+|\w+multirange)(\[\])?"
)

Row = dict[str, Any]
Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """`type` as `format_type` prints it, `text` for an enum or a type of an extension.

    `toastable`: an unchanged value may be missing from an update's event. `enum`: of an enum, or an array of one.
    `composed`: of a composite type, or an array of one or of a domain.
    """

    name: str
    type: str
    not_null: bool
    toastable: bool
    generated: bool
    enum: bool = False
    composed: bool = False

    @property
    def why_not_streamed(self) -> str:
        """Why its value does not reach the stream, "" if it does."""
        if self.generated:
            return "is a generated column: replication leaves it out"
        if self.composed or _NOT_SENT.fullmatch(self.type):
            kind = "a composite type, or an array of a domain" if self.composed else self.type
            return f"is {kind}, which Debezium does not send as it is: leave it out of template and metadata"
        return ""


@dataclass(frozen=True, slots=True)
class TableInfo:
    """One source table. `key` is the primary key in its own order; `full` says REPLICA IDENTITY FULL."""

    table: str
    key: tuple[SourceColumn, ...]
    columns: tuple[SourceColumn, ...]
    full: bool

    @property
    def types(self) -> Mapping[str, str]:
        """Type of each column."""
        return {column.name: column.type for column in self.columns}

    @property
    def toastable(self) -> frozenset[str]:
        return frozenset(column.name for column in self.columns if column.toastable)

    def need(self, columns: Iterable[str], why: str, *, streamed: bool = True) -> None:
        """Raise SettingsError unless each column exists and, if `streamed`, its value reaches the stream."""
        by_name = {column.name: column for column in self.columns}
        for name in sorted(columns):
            if name not in by_name:
                raise SettingsError(f"{self.table} has no column {name!r}, which {why} names")
            if streamed and (reason := by_name[name].why_not_streamed):
                raise SettingsError(f"{self.table}.{name} {reason}")

    def unsafe(self, columns: Iterable[str]) -> list[str]:
        """Those of `columns` that an update's event may lack, because identity is not FULL."""
        return [] if self.full else sorted(set(columns) & self.toastable)


@contextlib.contextmanager
def source_errors() -> Iterator[None]:
    """Driver errors become ours here and nowhere else; the message never carries the DSN."""
    try:
        yield
    except psycopg.OperationalError as error:
        raise SourceUnavailable(f"source database: {_first_line(error)}") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise SettingsError(
            f"source database: {_first_line(error)}; let the owner run `upwell migrate source --print`"
        ) from error
    except psycopg.errors.UndefinedTable as error:
        raise SettingsError(
            f"source database: {_first_line(error)}; run `upwell migrate source` first"
        ) from error


def _first_line(error: psycopg.Error) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def open_source(dsn: str, application: str = "upwell") -> Connection:
    """An autocommit connection. Raises SourceUnavailable, SourceRefused, SettingsError if there is no DSN."""
    if not dsn:
        raise SettingsError("source.dsn is not set: UPWELL_SOURCE_DSN or [source] dsn")
    with source_errors():
        return login.connect(dsn, application, SourceRefused, "source.dsn")


@contextlib.contextmanager
def connect_source(dsn: str) -> Iterator[Connection]:
    """As `open_source`, for a while, within which the driver's errors become ours."""
    connection = open_source(dsn)
    with source_errors(), connection:
        yield connection


def rows(connection: Connection, query: str, parameters: Mapping[str, object] | None = None) -> list[Row]:
    """All rows of one named query as dicts."""
    with source_errors(), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(SQL[query], parameters).fetchall()


def first(connection: Connection, query: str, parameters: Mapping[str, object] | None = None) -> Row | None:
    """The first row, or None."""
    found = rows(connection, query, parameters)
    return found[0] if found else None


def drop_slot(connection: Connection, slot: str) -> bool:
    """Whether a replication slot was there and is dropped; who still reads it is waited for a while.

    Raises SourceUnavailable if it stays in use.
    """
    deadline = time.monotonic() + SLOT_SECONDS
    while first(connection, "slot", {"slot": slot}) is not None:
        if rows(connection, "drop_slot", {"slot": slot}):
            return True
        if time.monotonic() > deadline:
            raise SourceUnavailable(f"slot {slot} is still being read: stop whoever reads it")
        time.sleep(0.1)
    return False


def has_values(connection: Connection, table: str, column: str) -> bool:
    """Whether a column is anything but NULL in some row."""
    query = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {} IS NOT NULL)").format(
        sql.Identifier(*table.split(".")), sql.Identifier(column)
    )
    with source_errors():
        row = connection.execute(query).fetchone()
    return row is not None and bool(row[0])


def look_for(
    connection: Connection,
    table: str,
    keys: Sequence[Mapping[str, object]],
    transaction_ids: Sequence[int | None],
) -> list[bool | None]:
    """Whether the table has each key, in order; None while the key's transaction is not visible yet. One statement,
    so one snapshot.
    """
    if not keys:
        return []
    relation = sql.Identifier(*table.split("."))
    each = sql.SQL("({}, EXISTS (SELECT FROM {} WHERE {}))")
    listed = [
        each.format(sql.Literal(number), relation, key_condition(key)) for number, key in enumerate(keys, 1)
    ]
    transactions = sql.Literal(list(transaction_ids))
    query = SQL.filled("look_for", keys=sql.SQL(", ").join(listed), transactions=transactions)
    with source_errors():
        found = connection.execute(query).fetchall()
    return [there if visible else None for there, visible in found]


def key_condition(key: Mapping[str, object]) -> sql.Composed:
    """`"id" = '42' AND ...`. Values are quoted as literals of unknown type: Postgres takes the column's."""
    parts = [
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(str(value)))
        for name, value in key.items()
    ]
    return sql.SQL(" AND ").join(parts)


def check_server(connection: Connection) -> None:
    """Raise SettingsError unless this server can feed logical replication."""
    server = first(connection, "server")
    assert server is not None
    if server["version"] < LEAST_VERSION:
        raise SettingsError("the source needs Postgres 14 or newer")
    if server["wal_level"] != "logical":
        raise SettingsError(
            f"the source has wal_level {server['wal_level']}: set it to logical and restart the server"
        )
    if server["encoding"] != "UTF8":
        raise SettingsError(f"the source database is {server['encoding']}: pgoutput needs UTF8")


def inspect_tables(
    connection: Connection, tables: Iterable[str], *, server: bool = True
) -> dict[str, TableInfo]:
    """What the catalog says, by `schema.table`. Raises SettingsError for the first table that cannot be
    captured, and with `server` for a server that cannot be.
    """
    if server:
        check_server(connection)
    return {table: _inspect(connection, table) for table in check_tables(tables)}


def _inspect(connection: Connection, table: str) -> TableInfo:
    schema, name = table.split(".")
    relation = first(connection, "table", {"schema": schema, "table": name})
    if relation is None:
        raise SettingsError(f"the source has no table {table}")
    _refuse(table, relation)
    found = rows(connection, "columns", {"oid": relation["oid"]})
    key = sorted((row for row in found if row["key_position"]), key=lambda row: int(row["key_position"]))
    if not key:
        raise SettingsError(f"{table} has no primary key: published without one, its own UPDATEs would fail")
    hidden = [row["name"] for row in found if row["virtual"]]
    if relation["identity"] == "f" and hidden:
        raise SettingsError(
            f"{table} has REPLICA IDENTITY FULL and the virtual generated column {hidden[0]!r}: published so, its own "
            f"UPDATEs would fail; make the column STORED"
        )
    return TableInfo(table, tuple(map(_column, key)), tuple(map(_column, found)), relation["identity"] == "f")


def _refuse(table: str, relation: Row) -> None:
    if relation["kind"] == "p":
        raise SettingsError(f"{table} is partitioned: name its partitions as tables of their own")
    if relation["kind"] != "r":
        raise SettingsError(f"{table} is not an ordinary table")
    if relation["persistence"] != "p":
        raise SettingsError(f"{table} is unlogged or temporary: its changes are not in the write-ahead log")
    if relation["identity"] == "n":
        raise SettingsError(f"{table} has REPLICA IDENTITY NOTHING: published so, its own UPDATEs would fail")
    if relation["identity"] == "d" and relation["deferrable"]:
        raise SettingsError(
            f"{table} has a deferrable primary key, which is no replica identity: published so, its own UPDATEs "
            f"would fail; let its owner run ALTER TABLE {table} REPLICA IDENTITY FULL"
        )


def _column(row: Row) -> SourceColumn:
    return SourceColumn(
        row["name"],
        row["type"],
        row["not_null"],
        row["toastable"],
        row["generated"],
        row["enum"],
        row["composed"],
    )
