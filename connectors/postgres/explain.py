"""All that the sink holds of one key, in one snapshot. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from connectors.postgres.intake_store import SQL as SINK
from connectors.postgres.layout import embedding_table, record_table
from connectors.postgres.read import SQL as READ
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.errors import SettingsError
from schemas.names import canonical_key, check_identifier, key_values
from schemas.readings import Explanation, GenerationReading

SQL: Final = Queries.load("explain")
#: Audit rows that are shown; all are counted.
AUDIT_ROWS: Final = 20

_WHOLE_NUMBERS: Final = frozenset({"smallint", "integer", "bigint"})
_TRUTH: Final = {"true": True, "t": True, "false": False, "f": False}

Connection = psycopg.Connection[Any]


def explain(connection: Connection, collection: str, values: Sequence[str]) -> Explanation:
    """`values`: the key as a person writes it: its columns' values in order, `a=1,b=x`, or a JSON array.

    Raises SettingsError for an unknown collection or a key that is none of it.
    """
    check_identifier(collection, "collection")
    with sink_errors(), connection.transaction():
        connection.execute(READ["one_snapshot"])
        of = {"collection": collection}
        known = _rows(connection, SQL["collection"], of)
        if not known:
            raise SettingsError(f"the sink has no collection {collection!r}")
        key = _key(connection, collection, known[0]["key_columns"], values)
        at = {**of, "key": key, "limit": AUDIT_ROWS}
        record = record_table(collection)
        generations = [
            GenerationReading(
                **row,
                chunks=_rows(
                    connection,
                    SQL.filled("chunks", embedding=embedding_table(collection, row["number"])),
                    at,
                ),
            )
            for row in _rows(connection, SQL["generations"], of)
        ]
        names = [
            f"record_{collection}",
            *(
                f"{part}_{collection}_g{each.number}"
                for each in generations
                for part in ("embedding", "repeated")
            ),
        ]
        return Explanation(
            at=connection.execute(READ["clock"]).fetchall()[0][0],
            collection=collection,
            table=known[0]["table_name"],
            key=key,
            record=next(iter(_rows(connection, SQL.filled("record", record=record), at)), None),
            generations=generations,
            pending=_rows(connection, SQL["pending"], at),
            dead_letters=_rows(connection, SQL["dead_letters"], at),
            in_doubt=next(iter(_rows(connection, SQL["in_doubt"], at)), None),
            audit=_rows(connection, SQL["audit"], at),
            audit_rows=_rows(connection, SQL["audited"], at)[0]["rows"],
            vacuumed={
                row["name"]: row["at"] for row in _rows(connection, SQL["vacuumed"], {"tables": names})
            },
        )


def _key(connection: Connection, collection: str, columns: Sequence[str], words: Sequence[str]) -> str:
    values = key_values(columns, words)
    found = _rows(connection, SINK["column_types"], {"table": f"upwell.record_{collection}"})
    types = {row["attname"]: row["format_type"] for row in found}
    return canonical_key(
        [_typed(name, types.get(name, ""), value) for name, value in zip(columns, values, strict=True)]
    )


def _typed(name: str, type_name: str, value: object) -> object:
    """As the key is stored: numbers and truth values as such, everything else as its text."""
    if not isinstance(value, str):
        return value
    if type_name in _WHOLE_NUMBERS:
        try:
            return int(value)
        except ValueError:
            raise SettingsError(f"key column {name} is {type_name}, {value!r} is none") from None
    if type_name == "boolean" and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    return value


def _rows(
    connection: Connection, query: sql.SQL | sql.Composed, parameters: Mapping[str, object]
) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return list(cursor.execute(query, parameters))
