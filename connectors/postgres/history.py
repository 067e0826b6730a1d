"""The history of freshness in the sink: verdicts by minute, and the past rolled up, so that it stays small.

| kept | as minutes | as hours | as days |
|---|---|---|---|
| verdicts, good and bad changes | 3 days | the SLO's window | |
| sketches of `total` | 6 hours | the SLO's window | |
| sketches of other stages | 3 hours | 3 days | the SLO's window |
| counters, slow changes | 6 hours | 3 days | the SLO's window |

What several workers wrote of a minute becomes one row after ten minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg import sql

from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.freshness import Bucket, State

SQL: Final = Queries.load("history")
MERGED_AFTER: Final = timedelta(minutes=10)
STAGE_HOURS_AFTER: Final = timedelta(hours=3)
HOURS_AFTER: Final = timedelta(hours=6)
DAYS_AFTER: Final = timedelta(days=3)
#: A writer that was silent for so long does not come back to what it wrote last.
DEAD_AFTER: Final = timedelta(days=1)
#: Rows that one transaction deletes at most.
BATCH_ROWS: Final = 5000
#: What is kept for the window, by the column that says of when it is.
KEPT: Final = (
    ("freshness_history", "bucket"),
    ("delay", "minute"),
    ("counter", "minute"),
    ("slow_change", "bucket"),
)
TOTAL: Final = ("total",)
STAGES: Final = ("capture", "queue", "wait", "embed", "write")

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class _Rollup:
    """Rows older than `after` become rows of a `unit`; a transaction does those of one `batch` at most."""

    rows: str
    unit: str
    batch: str
    after: timedelta
    stages: Sequence[str] = ()


ROLLUPS: Final = (
    _Rollup("counters", "minute", "hour", MERGED_AFTER),
    _Rollup("counters", "hour", "hour", HOURS_AFTER),
    _Rollup("counters", "day", "day", DAYS_AFTER),
    _Rollup("delays", "minute", "hour", MERGED_AFTER, (*STAGES, *TOTAL)),
    _Rollup("delays", "hour", "hour", STAGE_HOURS_AFTER, STAGES),
    _Rollup("delays", "hour", "hour", HOURS_AFTER, TOTAL),
    _Rollup("delays", "day", "day", DAYS_AFTER, STAGES),
    _Rollup("slow_changes", "hour", "hour", HOURS_AFTER),
    _Rollup("slow_changes", "day", "day", DAYS_AFTER),
    _Rollup("minutes", "hour", "hour", DAYS_AFTER),
)


def add_verdicts(
    connection: Connection, at: datetime, verdicts: Mapping[str, tuple[State, float | None, int]]
) -> None:
    """Add an evaluation at `at` (the sink's clock) to its minute: verdict, staleness in seconds, pending rows.

    A minute has the worst verdict given in it, UNKNOWN before STALE before INCOMPLETE before FRESH, and the maxima of
    the others, so that a second monitor, or the same evaluation again, changes nothing. Collections that the sink does
    not have are left out. Raises SinkUnavailable.
    """
    with sink_errors():
        connection.execute(
            SQL["add_verdicts"],
            {
                "at": at,
                "collections": list(verdicts),
                "verdicts": [state.value for state, _, _ in verdicts.values()],
                "staleness": [seconds for _, seconds, _ in verdicts.values()],
                "pending": [pending for _, _, pending in verdicts.values()],
            },
        )


def read_buckets(connection: Connection, names: Sequence[str], since: datetime) -> Mapping[str, list[Bucket]]:
    """Rows of each collection that begin at `since` or later, oldest first, and before them the newest earlier one.

    A collection without rows has an empty list. Raises SinkUnavailable.
    """
    found: dict[str, list[Bucket]] = {name: [] for name in names}
    with sink_errors():
        for name, *row in connection.execute(SQL["buckets"], {"names": list(found), "since": since}):
            found[name].append(Bucket(*row))
    return found


def read_window(connection: Connection, names: Sequence[str], since: datetime) -> Mapping[str, list[Bucket]]:
    """Rows of each collection that end after `since`, oldest first. Raises SinkUnavailable."""
    found = read_buckets(connection, names, since)
    return {name: [each for each in rows if each.end > since] for name, rows in found.items()}


def keep_history(connection: Connection, window_days: Mapping[str, int], at: datetime | None = None) -> bool:
    """Roll up what is old and delete what is beyond the windows, as of `at` (the sink's clock); idempotent.

    `connection` must be in autocommit mode: each hour is a transaction of its own, so that workers that flush do not
    wait. False, and nothing done, while somebody else is at it. Raises SinkUnavailable, Conflict; run it again then.
    """
    with sink_errors():
        if not _value(connection, SQL["try_lock"]):
            return False
        try:
            at = at or _value(connection, SQL["clock"])
            for rollup in ROLLUPS:
                _roll_up(connection, rollup, at)
            for table, time in KEPT:
                _drop_old(connection, table, time, window_days, at)
            connection.execute(SQL["drop_canary_audit"])
        finally:
            if not connection.broken:
                connection.execute(SQL["unlock"])
    return True


def _roll_up(connection: Connection, rollup: _Rollup, at: datetime) -> None:
    asked = {
        "unit": rollup.unit,
        "batch": rollup.batch,
        "before": at - rollup.after,
        "dead": at - DEAD_AFTER,
        "stages": list(rollup.stages),
    }
    for (first,) in connection.execute(SQL[f"due_{rollup.rows}"], asked).fetchall():
        connection.execute(SQL[f"roll_{rollup.rows}"], {**asked, "first": first})


def _drop_old(
    connection: Connection, table: str, time: str, window_days: Mapping[str, int], at: datetime
) -> None:
    query = SQL.filled("drop_old", table=sql.Identifier("upwell", table), time=sql.Identifier(time))
    asked = {
        "at": at,
        "names": list(window_days),
        "days": list(window_days.values()),
        "longest": max(window_days.values(), default=90),
        "limit": BATCH_ROWS,
    }
    while connection.execute(query, asked).rowcount == BATCH_ROWS:
        pass


def _value(connection: Connection, query: sql.SQL) -> Any:
    row = connection.execute(query).fetchone()
    return None if row is None else row[0]
