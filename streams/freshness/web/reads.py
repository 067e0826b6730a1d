"""What the page reads of the sink, beside what the monitor knows anyway: report, history, one key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import psycopg

from connectors.postgres.capture_state import connect_sink
from connectors.postgres.explain import explain
from connectors.postgres.history import read_window
from connectors.postgres.read import read_report
from schemas.freshness import Bucket
from streams.explanation import explanation
from streams.freshness.report import as_json, build_report

STATEMENT_SECONDS: Final = 5


class Reads(Protocol):
    """Called from threads; may wait. Raises Retry while the sink is away, SettingsError for what it has not."""

    def report(self, window: timedelta) -> Mapping[str, Any]:
        """The object of `upwell report --json`."""
        ...

    def history(self, collection: str, window: timedelta) -> Sequence[Bucket]:
        """Oldest first."""
        ...

    def explain(self, collection: str, key: str) -> Mapping[str, Any]:
        """The object of `upwell explain --json`; `key` as a person writes it."""
        ...


@dataclass(frozen=True, slots=True)
class SinkReads:
    """A connection for each question: they are asked every few seconds at most. Retentions are the settings'."""

    dsn: str
    kafka_retention: timedelta
    audit_retention: timedelta

    def report(self, window: timedelta) -> Mapping[str, Any]:
        with self._connected() as connection:
            return as_json(build_report(read_report(connection, window)))

    def history(self, collection: str, window: timedelta) -> Sequence[Bucket]:
        with self._connected() as connection:
            return read_window(connection, [collection], datetime.now(UTC) - window)[collection]

    def explain(self, collection: str, key: str) -> Mapping[str, Any]:
        with self._connected() as connection:
            return explanation(
                explain(connection, collection, [key]), self.kafka_retention, self.audit_retention
            )

    @contextlib.contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        """A query that takes too long is given up."""
        with connect_sink(self.dsn) as connection:
            connection.execute(f"SET statement_timeout = '{STATEMENT_SECONDS}s'")
            yield connection
