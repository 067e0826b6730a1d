"""Columns of a record table whose values are in no event: added at the source with a default, or of another type now.

Neither ALTER TABLE ... ADD COLUMN ... DEFAULT nor ALTER COLUMN ... TYPE ... USING sends anything of the rows that are
there: they are read again, key by key, as keys in doubt are (infra/decisions/0014).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import psycopg
from psycopg import sql

from connectors.postgres.layout import CollectionLayout, record_table
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors

SQL: Final = Queries.load("layout")
SINK: Final = Queries.load("sink")

Connection = psycopg.Connection[Any]


def stored_types(connection: Connection, collection: str) -> dict[str, str]:
    """Type of each key and metadata column that the sink has; {} if it has no such collection."""
    with sink_errors():
        rows = connection.execute(SINK["column_types"], {"table": f"upwell.record_{collection}"}).fetchall()
    return dict(rows)


def fill(connection: Connection, layout: CollectionLayout, column: str, kind: sql.SQL) -> None:
    """A new column of the rows that are stored, as far as they have it; what cannot be converted is NULL until read
    again.
    """
    parts = {"record": record_table(layout.name), "column": sql.Identifier(column), "type": kind}
    try:
        with connection.transaction():
            connection.execute(SQL.filled("fill_column", column_name=sql.Literal(column), **parts))
    except psycopg.DataError:
        return


def read_again(connection: Connection, collection: str, lacking: Collection[str]) -> int:
    """Ask for all rows that lack one of these columns, or for all with none given; returns how many."""
    query = SQL.filled("read_again", record=record_table(collection))
    return connection.execute(query, {"collection": collection, "lacking": list(lacking)}).rowcount
