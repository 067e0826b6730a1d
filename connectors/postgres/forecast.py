"""The queue before the model, and the rates of the last minutes, as a forecast needs them. Reads only."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

from connectors.postgres.capture_state import SILENT_SECONDS
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.forecast import QueuedCollection, QueueReading
from schemas.freshness import CANARY

SQL: Final = Queries.load("forecast")
Connection = psycopg.Connection[Any]

#: Of `pending`, as a sample: some 17,000 rows, 3 MB and 30 ms; of a table that is no larger everything.
BLOCKS: Final = 400
#: Rates are of two to three minutes; of an hour where fewer texts than this were embedded in them.
RECENT: Final = timedelta(minutes=2)
HOUR: Final = timedelta(hours=1)
ENOUGH_TEXTS: Final = 20


def read_queue(connection: Connection, *, blocks: int = BLOCKS) -> QueueReading:
    """What `streams.freshness.forecast.forecast_of` computes from. Cheap, however much waits: where `pending`
    has more than `blocks` blocks that many are sampled, and counts are estimates.

    Raises SinkUnavailable.
    """
    with sink_errors():
        workers, now = connection.execute(SQL["workers"], {"silent_seconds": SILENT_SECONDS}).fetchall()[0]
        thresholds = dict(connection.execute(SQL["collections"]).fetchall())
        queue = connection.execute(SQL["queue"], {"blocks": blocks}).fetchall()
        recent = _minute(now - RECENT)
        rates = connection.execute(SQL["rates"], {"recent": recent, "hour": _minute(now - HOUR)}).fetchall()
    lately = {(collection, name): value for collection, name, value, _ in rates}
    in_hour = {(collection, name): value for collection, name, _, value in rates}
    seconds = (now - recent).total_seconds()
    return QueueReading(
        collections=[
            _queued(name, threshold, queue, lately.get((name, "to_embed"), 0) / seconds)
            for name, threshold in thresholds.items()
        ],
        filling=round(sum(texts for _, is_live, _, _, texts, _ in queue if not is_live)),
        workers=workers,
        texts_per_second=_rate(lately, ENOUGH_TEXTS) or _rate(in_hour, 1),
    )


def _queued(name: str, threshold: float, queue: list[Any], arrivals: float) -> QueuedCollection:
    mine = [row[2:] for row in queue if row[0] == name and row[1]]
    return QueuedCollection(
        name,
        threshold,
        late=round(sum(texts for lane, slot, texts, _ in mine if lane == "live" and slot == 0)),
        waiting=[
            (left, max(round(texts), 1)) for lane, slot, texts, left in mine if lane == "live" and slot > 0
        ],
        backfill=round(sum(texts for lane, _, texts, _ in mine if lane == "backfill")),
        arrivals_per_second=arrivals,
    )


def _rate(sums: dict[tuple[str, str], int], least: int) -> float | None:
    """Of one worker while it has work; the canary's short texts say little. None of fewer than `least` texts."""
    texts = sum(value for (owner, name), value in sums.items() if owner != CANARY and name == "embed_texts")
    busy = sum(value for (owner, name), value in sums.items() if owner != CANARY and name == "embed_busy_ms")
    return texts * 1000 / busy if texts >= least and busy > 0 else None


def _minute(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0)
