"""What people read of the sink: the numbers of a report, and nearest neighbours. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.types.datetime import DateLoader, TimestampLoader, TimestamptzLoader

from connectors.postgres.history import read_window
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.errors import GenerationMismatch, MigrationNeeded, SettingsError
from schemas.freshness import Freshness, SlowChange, State, Verdict
from schemas.names import VIEW_COLUMNS, canonical_key, check_identifier
from schemas.readings import (
    BLOCKED_SECONDS,
    BlockedReading,
    CollectionReading,
    MonitorReading,
    PendingReading,
    Readings,
    SketchReading,
    WorkerReading,
)

SQL: Final = Queries.load("read")

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A chunk that was found. `key` is the canonical key; `score` is the cosine similarity.

    `is_stale` is the view's: a newer text of the row is not searchable yet. `stale_seconds`: for how long,
    by the source's commit; None if it is not stale, or if that is not known.
    """

    score: float
    key: str
    chunk_no: int
    chunk_text: str
    source_committed_at: datetime | None
    embedded_at: datetime
    is_stale: bool
    stale_seconds: float | None
    metadata: Mapping[str, Any]


def read_report(connection: Connection, window: timedelta, collection: str | None = None) -> Readings:
    """One snapshot over the window, of one collection or all. `connection` must not be in a transaction.

    Raises SettingsError for an unknown collection, MigrationNeeded if the schema is not there.
    """
    with sink_errors(), connection.transaction():
        connection.execute(SQL["one_snapshot"])
        at: datetime = _rows(connection, "clock")[0][0]
        since = at - window
        found = _rows(connection, "collections", {"only": collection})
        if collection is not None and not found:
            raise SettingsError(f"the sink has no collection {collection!r}")
        names = [row[0] for row in found]
        of = {
            "names": names,
            "minute": since.replace(second=0, microsecond=0),
            "since": since,
        }
        return Readings(
            at=at,
            since=since,
            collections=[CollectionReading(name, state, detail or {}) for name, state, detail in found],
            pending=[PendingReading(*row) for row in _rows(connection, "pending", of)],
            dead_letters=dict(_rows(connection, "dead_letters", of)),
            counters={(owner, name): value for owner, name, value in _rows(connection, "counters", of)},
            sketches=[SketchReading(*row) for row in _rows(connection, "sketches", of)],
            workers=[WorkerReading(*row) for row in _rows(connection, "workers")],
            freshness=[_freshness(*row) for row in _rows(connection, "freshness", of)],
            slow=[SlowChange(*row) for row in _rows(connection, "slow_changes", of)],
            buckets=read_window(connection, names, since),
            monitors=[MonitorReading(*row) for row in _rows(connection, "monitors")],
        )


def _freshness(collection: str, verdict: str, reason: str, *rest: Any) -> Freshness:
    return Freshness(collection, Verdict(State(verdict), reason), *rest)


def read_blocked(connection: Connection) -> list[BlockedReading]:
    """Collections that stand still, each once."""
    with sink_errors():
        return [
            BlockedReading(*row) for row in _rows(connection, "blocked", {"blocked_seconds": BLOCKED_SECONDS})
        ]


def live_model(connection: Connection, collection: str) -> str:
    """The model of a query vector. Raises MigrationNeeded for a collection that is not in the sink."""
    with sink_errors():
        found = _rows(connection, "live_model", {"collection": collection})
    if not found:
        raise MigrationNeeded(f"collection {collection} is not in the sink yet: run `upwell migrate` first")
    return str(found[0][0])


def search_rows(
    connection: Connection, collection: str, model: str, vector: npt.NDArray[np.float32], k: int
) -> list[SearchHit]:
    """The `k` chunks nearest to `vector`, nearest first, through `upwell.search_C`.

    Raises GenerationMismatch if the vector is not of the live model, MigrationNeeded for a collection that is
    not in the sink.
    """
    function = sql.Identifier("upwell", f"search_{check_identifier(collection, 'collection')}")
    parameters = {"model": model, "vector": f"[{','.join(map(repr, vector.tolist()))}]", "k": k}
    with sink_errors(), connection.cursor() as cursor:
        for type_name, loader in _LENIENT.items():
            cursor.adapters.register_loader(type_name, loader)
        try:
            cursor.execute(SQL.filled("search", function=function), parameters)
        except (psycopg.errors.InvalidParameterValue, psycopg.errors.DataException) as error:
            raise GenerationMismatch(f"sink database: {error.diag.message_primary}") from error
        names = [column.name for column in cursor.description or ()]
        found = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        key_columns = names[: names.index(VIEW_COLUMNS[0])]
        keys = [canonical_key([_as_json(row[column]) for column in key_columns]) for row in found]
    return [_hit(row, key, key_columns) for key, row in zip(keys, found, strict=True)]


def _hit(row: Mapping[str, Any], key: str, key_columns: Sequence[str]) -> SearchHit:
    ours = {*VIEW_COLUMNS, *key_columns, "score", "_stale_seconds"}
    seconds = row["_stale_seconds"]
    return SearchHit(
        score=row["score"],
        key=key,
        chunk_no=row["chunk_no"],
        chunk_text=row["chunk_text"],
        source_committed_at=row["source_committed_at"],
        embedded_at=row["embedded_at"],
        is_stale=row["is_stale"],
        stale_seconds=None if seconds is None else max(seconds, 0.0),
        metadata={name: _as_json(value) for name, value in row.items() if name not in ours},
    )


def _rows(connection: Connection, query: str, parameters: Mapping[str, object] | None = None) -> list[Any]:
    return connection.execute(SQL[query], parameters).fetchall()


def _as_json(value: Any) -> Any:
    """A column's value as the stored row has it: exact decimals and everything unusual as text."""
    if value is None or isinstance(value, bool | int | float | str | dict):
        return value
    if isinstance(value, list):
        return [_as_json(each) for each in value]
    if isinstance(value, Decimal):
        return format(value, "f")
    return str(value) if isinstance(value, UUID) or not hasattr(value, "isoformat") else value.isoformat()


class _Date(DateLoader):
    def load(self, data: Buffer) -> Any:
        return _or_text(super().load, data)


class _Timestamp(TimestampLoader):
    def load(self, data: Buffer) -> Any:
        return _or_text(super().load, data)


class _Timestamptz(TimestamptzLoader):
    def load(self, data: Buffer) -> Any:
        return _or_text(super().load, data)


def _or_text(load: Any, data: Buffer) -> Any:
    """`infinity` and years that Python has no date for stay text: one such row must not end a search."""
    try:
        return load(data)
    except psycopg.DataError:
        return bytes(data).decode()


_LENIENT: Final[Mapping[str, Any]] = {"date": _Date, "timestamp": _Timestamp, "timestamptz": _Timestamptz}
