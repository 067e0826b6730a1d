"""A connection through which source or sink is looked at: read-only, and every error is ours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from connectors.postgres.capture_state import connect_sink
from connectors.postgres.source import connect_source, source_errors
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.errors import SettingsError

SQL: Final = Queries.load("doctor")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Looking:
    """Queries of `doctor.sql` on one database."""

    connection: psycopg.Connection[Any]
    errors: Callable[[], AbstractContextManager[None]]

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Every error of the driver is ours: a question that a server does not like is no reason to end."""
        try:
            with self.errors():
                yield
        except psycopg.Error as error:
            line = error.diag.message_primary or type(error).__name__
            raise SettingsError(f"the server refuses the question: {line}") from error

    def rows(self, query: str, parameters: Mapping[str, object] | None = None) -> list[Row]:
        with self.asking(), self.connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(SQL[query], parameters).fetchall()

    def row(self, query: str, parameters: Mapping[str, object] | None = None) -> Row:
        """The first row, {} if there is none."""
        found = self.rows(query, parameters)
        return found[0] if found else {}


@contextlib.contextmanager
def look_at_source(dsn: str) -> Iterator[Looking]:
    """Raises SourceUnavailable, SourceRefused, SettingsError."""
    with connect_source(dsn) as connection:
        with source_errors():
            connection.execute(SQL["read_only"])
        yield Looking(connection, source_errors)


@contextlib.contextmanager
def look_at_sink(dsn: str) -> Iterator[Looking]:
    """Raises SinkUnavailable, SinkRefused, SettingsError."""
    with connect_sink(dsn) as connection:
        with sink_errors():
            connection.execute(SQL["read_only"])
        yield Looking(connection, sink_errors)
