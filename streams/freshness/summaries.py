"""What is computed over many rows, every ten seconds beside the evaluation: delays, SLO, forecast; and the roll-up.

Each has its own connection and thread, so that no verdict waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

from connectors.postgres.forecast import read_queue
from connectors.postgres.freshness import FreshnessStore
from connectors.postgres.history import keep_history, read_buckets, read_window
from connectors.postgres.read import read_report
from schemas.freshness import Bucket
from schemas.sink import Lane
from streams.freshness.forecast import Forecast, forecast_of
from streams.freshness.probes import open_sink
from streams.freshness.report import as_json, build_report
from streams.freshness.slo import slo_status, window_start
from streams.settings import Settings

WINDOW: Final = timedelta(hours=1)
#: A month of buckets is read again this often, the newest ones each time.
BUCKETS_SECONDS: Final = 600.0
NEWEST: Final = timedelta(minutes=15)
DELAYS: Final = ("p50", "p95", "p99", "max")


@dataclass(frozen=True, slots=True)
class Summary:
    """By collection; `report` is that of `upwell report --json` over the last hour."""

    slos: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    backfill: Mapping[str, int] = field(default_factory=dict)
    report: Mapping[str, Any] | None = None


class Summaries:
    """Computes a `Summary` and writes of it what `upwell.freshness` shows. `ahead_seconds`: the source's clock less the
    sink's, set by the evaluation.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slos = {name: spec.slo for name, spec in settings.collections.items()}
        self._connection: psycopg.Connection[Any] | None = None
        self._buckets: Mapping[str, list[Bucket]] = {}
        self._buckets_at = 0.0
        self.ahead_seconds = 0.0
        self.last = Summary()

    def look(self) -> None:
        """Raises SinkUnavailable."""
        if self._connection is None:
            self._connection = open_sink(self._settings.sink.dsn)
        connection, store = self._connection, FreshnessStore(self._connection)
        report = build_report(read_report(connection, WINDOW), self._slos)
        slos = self._evaluate(store, report.evaluated_at)
        found = as_json(report)
        store.summarise(
            {
                name: ({delay: each["delay_seconds"][delay] for delay in DELAYS}, slos.get(name, {}))
                for name, each in found["collections"].items()
            }
        )
        share = self._settings.worker.backfill_share
        forecasts = forecast_of(read_queue(connection), backfill_share=share)
        backfill = {name: each.pending[Lane.BACKFILL] for name, each in report.collections.items()}
        self.last = Summary(slos, forecasts, backfill, found)

    def _evaluate(self, store: FreshnessStore, now: datetime) -> dict[str, Mapping[str, Any]]:
        # Before the buckets: what becomes searchable in between is counted twice for a moment, and never not at all.
        overdue = store.overdue(self._slos, self.ahead_seconds)
        if time.monotonic() - self._buckets_at > BUCKETS_SECONDS or not self._buckets:
            since = min(window_start(slo, now) for slo in self._slos.values())
            self._buckets = read_buckets(store.connection, list(self._slos), since)
            self._buckets_at = time.monotonic()
        newest = (now - NEWEST).replace(second=0, microsecond=0)
        recent = read_window(store.connection, list(self._slos), newest)
        return {
            name: slo_status(
                slo, renewed(self._buckets[name], recent[name], newest), now, overdue.get(name, 0)
            ).as_json()
            for name, slo in self._slos.items()
        }

    def reset(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def renewed(buckets: Sequence[Bucket], recent: Sequence[Bucket], since: datetime) -> list[Bucket]:
    """`buckets` with those that begin at `since` or later replaced; both in order of time."""
    return [each for each in buckets if each.start < since] + [each for each in recent if each.start >= since]


def keep(settings: Settings) -> None:
    """Roll up and delete what is old. Raises SinkUnavailable, Conflict."""
    windows = {name: spec.slo.window_days for name, spec in settings.served.items()}
    with open_sink(settings.sink.dsn) as connection:
        keep_history(connection, windows)
