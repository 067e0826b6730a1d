"""Keys that the source does not have become markers, with everything that was made of them gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from connectors.postgres.layout import embedding_table, record_table
from connectors.postgres.sql import Queries

SQL: Final = Queries.load("sink")


def make_markers(
    connection: psycopg.Connection[Any], collection: str, keys: Sequence[str], reason: str
) -> None:
    """Within the caller's transaction, which has locked the records. A marker keeps its record's version."""
    record = record_table(collection)
    gone = {"collection": collection, "keys": list(keys), "reason": reason}
    columns = connection.execute(SQL["column_types"], {"table": f"upwell.record_{collection}"}).fetchall()
    emptied = sql.Composed([sql.SQL(", {} = NULL").format(sql.Identifier(row[0])) for row in columns])
    connection.execute(SQL.filled("mark_absent", record=record, emptied=emptied), gone)
    connection.execute(SQL["remove_pending"], gone)
    for number, *_ in connection.execute(SQL["generation_numbers"], gone).fetchall():
        embedding = embedding_table(collection, number)
        connection.execute(SQL.filled("remove_embeddings", embedding=embedding), gone)
    connection.execute(SQL.filled("audit_absent", record=record), gone)
