"""Incremental snapshots: asked for by a row in the signal table, so that a request is as durable as the log.

Debezium keeps ONE id for all scans that it has queued, that of the last signal. So ids say of what kind a
request was: a first load begins with `load-`, the re-read of single keys with `repair-`. A re-read must not be
asked for while a load is running, or the load's completion would carry the re-read's id.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Final

from connectors.debezium.naming import check_tables
from connectors.postgres.source import SQL, Connection, first, key_condition, source_errors

LOAD: Final = "load"
REPAIR: Final = "repair"


def new_signal_id(kind: str) -> str:
    """An id of its own for each request; debezium allows 42 characters with its own suffix."""
    return f"{kind}-{secrets.token_hex(8)}"


def request(
    connection: Connection, signal_id: str, tables: Iterable[str], conditions: Mapping[str, str] | None = None
) -> bool:
    """Insert the signal; False if it had been inserted before. `conditions`: SQL filter by table, safely
    quoted.

    Ask only with the slot existing, the connector RUNNING and every transaction older than the tables'
    addition to the publication ended (`unsettled`): rows of open transactions would be lost for ever (H25).
    """
    data: dict[str, object] = {"type": "incremental", "data-collections": list(check_tables(tables))}
    if conditions:
        data["additional-conditions"] = [
            {"data-collection": table, "filter": condition} for table, condition in conditions.items()
        ]
    parameters = {"id": signal_id, "type": "execute-snapshot", "data": json.dumps(data)}
    with source_errors():
        return connection.execute(SQL["signal"], parameters).rowcount == 1


def pause(connection: Connection) -> None:
    """Stop reading after the chunk that is being read; nothing if no scan is running."""
    _control(connection, "pause-snapshot")


def resume(connection: Connection) -> None:
    """Go on; nothing if nothing is paused."""
    _control(connection, "resume-snapshot")


def _control(connection: Connection, what: str) -> None:
    """A row that is gone at once: Debezium reads it from the log, and a long load sends hundreds."""
    parameters = {"id": new_signal_id("pace"), "type": what, "data": json.dumps({"type": "incremental"})}
    with source_errors(), connection.transaction():
        connection.execute(SQL["signal"], parameters)
        connection.execute(SQL["forget_signal"], parameters)


def sent(connection: Connection, signal_id: str) -> bool:
    """Whether the signal was inserted."""
    return first(connection, "signal_sent", {"id": signal_id}) is not None


def re_read(connection: Connection, table: str, keys: Iterable[Mapping[str, object]]) -> str:
    """Ask for single rows of one table again (H9); returns the signal's id. A key that is gone by then is in
    no event.
    """
    signal_id = new_signal_id(REPAIR)
    condition = " OR ".join(f"({key_condition(key).as_string(connection)})" for key in keys)
    request(connection, signal_id, [table], {table: condition})
    return signal_id
