"""Loads the sample shop into a Postgres database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, fields
from typing import Any

import psycopg
from psycopg import sql

from infra.sample.content import content
from infra.sample.customers import customers
from infra.sample.rows import ContentRow, CustomerRow, data


def load(dsn: str, *, seed: int = 7, progress: Callable[[str], None] | None = None) -> None:
    """Create schema `shop` if it is missing and fill its tables if both are empty; all in one transaction."""
    say = progress or (lambda _line: None)
    with psycopg.connect(dsn) as connection:
        _create(connection)
        if _holds_rows(connection):
            say("the sample shop holds rows already: nothing loaded")
            return
        for table, rows in (("content", content(seed)), ("customers", customers(seed))):
            _copy(connection, table, rows)
            say(f"shop.{table}: {len(rows):,} rows")


def _create(connection: psycopg.Connection[Any]) -> None:
    """Run the DDL unless both tables are there: it takes exclusive locks, which a busy shop need not wait for."""
    found = connection.execute(
        "SELECT to_regclass('shop.content') IS NOT NULL AND to_regclass('shop.customers') IS NOT NULL"
    ).fetchone()
    if found != (True,):
        connection.execute(data().joinpath("schema.sql").read_text(encoding="utf-8"))


def _holds_rows(connection: psycopg.Connection[Any]) -> bool:
    """Whether either table has a row; locked first, so that two loaders do not both say no."""
    connection.execute("LOCK TABLE shop.content, shop.customers IN SHARE ROW EXCLUSIVE MODE")
    found = connection.execute(
        "SELECT EXISTS (SELECT FROM shop.content) OR EXISTS (SELECT FROM shop.customers)"
    ).fetchone()
    return found == (True,)


def _copy(
    connection: psycopg.Connection[Any], table: str, rows: Sequence[ContentRow] | Sequence[CustomerRow]
) -> None:
    """COPY the rows; field names are column names."""
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in fields(rows[0]))
    statement = sql.SQL("COPY shop.{} ({}) FROM STDIN").format(sql.Identifier(table), columns)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(_values(astuple(row)))


def _values(row: Iterable[Any]) -> list[Any]:
    """psycopg writes lists as arrays, and tuples as composites."""
    return [list(value) if isinstance(value, tuple) else value for value in row]
