"""Dead letters on the command line: which there are, what is in one, and waiving one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from connectors.postgres.intake_writes import storable
from connectors.postgres.migrate import check_schema
from connectors.postgres.replay import SQL, stored_letter
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.errors import SettingsError
from schemas.letters import StoredLetter

GENERATIONS: Final = Queries.load("generations")
Connection = psycopg.Connection[Any]


def list_letters(
    connection: Connection, collection: str | None, *, closed: bool, limit: int
) -> tuple[list[dict[str, Any]], int]:
    """The oldest ones, without texts and bytes, and how many there are. `closed`: those too.

    Raises SettingsError for an unknown collection.
    """
    if collection is not None:
        check_collection(connection, collection)
    found = _rows(connection, SQL["listed"], {"collection": collection, "closed": closed, "limit": limit})
    total = found[0]["total"] if found else 0
    return [{name: value for name, value in row.items() if name != "total"} for row in found], total


def check_collection(connection: Connection, collection: str) -> None:
    """Raise SettingsError for a collection that the sink does not have."""
    if not _rows(connection, GENERATIONS["collection"], {"collection": collection}):
        raise SettingsError(f"the sink has no collection {collection!r}")


def one_letter(connection: Connection, number: int) -> StoredLetter:
    """Raises SettingsError if there is none."""
    found = _rows(connection, SQL["letter"], {"id": number})
    if not found:
        raise SettingsError(f"there is no dead letter {number}: see `upwell dead-letters list --all`")
    return stored_letter(found[0])


def named_letters(connection: Connection, numbers: Sequence[int]) -> list[int]:
    """Those of these ids in the order in which they came. Raises SettingsError, which names the unknown ones."""
    found = _in_order(connection, {"ids": list(numbers), "collection": None, "error_class": None})
    unknown = sorted(set(numbers) - set(found))
    if unknown:
        raise SettingsError(
            f"there is no dead letter {', '.join(map(str, unknown))}: see `upwell dead-letters list --all`"
        )
    return found


def open_letters(connection: Connection, collection: str | None, error_class: str | None) -> list[int]:
    """Ids of the open ones of a kind, in the order in which they came. Raises SettingsError."""
    if collection is not None:
        check_collection(connection, collection)
    return _in_order(connection, {"ids": None, "collection": collection, "error_class": error_class})


def waive(connection: Connection, number: int, reason: str) -> bool:
    """Close and empty one, and audit who did and why. False if it was closed before."""
    values = {
        **dict.fromkeys(("key", "lsn", "transaction_id", "text_hash", "outcome")),
        "id": number,
        "closed_by": "waived",
        "reason": storable(reason),
    }
    with sink_errors(), connection.transaction():
        if connection.execute(SQL["close"], values).rowcount == 0:
            return False
        connection.execute(SQL["audit_closed"], values)
    return True


def check_writable(connection: Connection) -> None:
    """Raise MigrationNeeded unless the sink's schema is just the one that this code was written for."""
    with sink_errors():
        check_schema(connection)


def _in_order(connection: Connection, parameters: Mapping[str, object]) -> list[int]:
    return [row["id"] for row in _rows(connection, SQL["in_order"], parameters)]


def _rows(
    connection: Connection, query: sql.SQL | sql.Composed, parameters: Mapping[str, object]
) -> list[dict[str, Any]]:
    with sink_errors(), connection.cursor(row_factory=dict_row) as cursor:
        return list(cursor.execute(query, parameters))
