"""A collection that the spec no longer has: view, records, vectors and dead letters are removed; the audit stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from connectors.postgres.layout import embedding_table, record_table
from connectors.postgres.migrate import drop_embedding
from connectors.postgres.removal import SQL as SINK
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors

SQL: Final = Queries.load("layout")
#: Rows of tables that all collections share, in DESIGN's lock order.
SHARED: Final = (
    "pending",
    "dead_letter",
    "repair",
    "counter",
    "delay",
    "slow_change",
    "blocked",
    "generation",
)

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed with a collection."""

    records: int
    vectors: int
    dead_letters: int


def collection_names(connection: Connection) -> list[str]:
    """All that the sink has; none before the first migration."""
    with sink_errors():
        there = connection.execute(SQL["has_migrations"]).fetchone()
        if there is None or not there[0]:
            return []
        return [row[0] for row in connection.execute(SQL["collection_names"])]


def remove_collection(connection: Connection, collection: str) -> Removed:
    """In one transaction, alone on the collection. Its topics must be forgotten before. Raises SinkUnavailable.

    Positions that a worker has set since go too: from here on nobody can take in anything of the collection.
    """
    at = {"collection": collection}
    record = record_table(collection)
    view, function = sql.Identifier("upwell", collection), sql.Identifier("upwell", f"search_{collection}")
    with sink_errors(), connection.transaction():
        connection.execute(SINK["lock_collection_alone"], at)
        numbers = [row[0] for row in connection.execute(SINK["generation_numbers"], at)]
        tables = [embedding_table(collection, number) for number in numbers]
        removed = _counted(connection, at, record, tables)
        connection.execute(SQL.filled("drop_search", function=function))
        connection.execute(SQL.filled("drop_collection_view", view=view))
        for table in SHARED:
            query = sql.SQL("DELETE FROM {} WHERE collection = %(collection)s")
            connection.execute(query.format(sql.Identifier("upwell", table)), at)
        connection.execute(SQL.filled("drop_table", table=record))
        for number in numbers:
            drop_embedding(connection, collection, number)
        connection.execute("DELETE FROM upwell.collection WHERE name = %(collection)s", at)
        connection.execute(SQL["forget_positions"])
        counts = {"records": removed.records, "vectors": removed.vectors}
        connection.execute(SQL["audit_removed"], {**at, **counts})
    return removed


def _counted(
    connection: Connection, at: dict[str, str], record: sql.Identifier, tables: list[sql.Identifier]
) -> Removed:
    row = connection.execute(SQL.filled("removed_counts", record=record), at).fetchone()
    assert row is not None
    vectors = 0
    for each in tables:
        count = connection.execute(SQL.filled("count_embeddings", embedding=each)).fetchone()
        vectors += count[0] if count is not None else 0
    return Removed(row[0], vectors, row[1])
