"""What `upwell report` says, computed from one snapshot of the sink. Pure; it judges nothing.

A window is a merge of its minutes' sketches, so its quantiles are within 1 %, its count, mean and maximum exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from schemas.change import Outcome
from schemas.readings import CollectionReading, Readings, WorkerReading
from schemas.sink import Lane
from streams.freshness.measures import STAGES
from streams.freshness.sketches import merged, summary

TOTAL: Final = "total"
#: Stages of the total, in the order in which a change passes them.
PARTS: Final = tuple(stage for stage in STAGES if stage != TOTAL)
#: Stages that end or begin at the clock of Kafka Connect, so that its skew is in them (DESIGN 7).
APPROXIMATE: Final = frozenset({"capture", "queue"})
CHUNK_RESULTS: Final = ("encoded", "kept", "copied")


@dataclass(frozen=True, slots=True)
class Delays:
    """A distribution of delays in seconds; everything but `count` is None when it is empty."""

    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None
    mean: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage's delays. `share`: its part of the seconds spent in all stages, None if none were."""

    delays: Delays
    share: float | None
    approximate: bool


@dataclass(frozen=True, slots=True)
class FirstLoad:
    """`rows`: how many the scan read, None until it ended; `searchable`: how much of it is not pending any more."""

    state: str
    rows: int | None
    searchable: float | None


@dataclass(frozen=True, slots=True)
class CollectionReport:
    """One collection. `backfilled`: first-load documents that became searchable; `clock_negative`: delays that the
    clocks made negative, counted as 0."""

    pending: Mapping[str, int]
    oldest_pending_seconds: float | None
    dead_letters: int
    delay: Delays
    stages: Mapping[str, Stage]
    outcomes: Mapping[str, int]
    chunks: Mapping[str, int]
    load: FirstLoad
    backfilled: int
    clock_negative: int

    @property
    def taken_in(self) -> int:
        return sum(self.outcomes.values())

    @property
    def chunks_saved(self) -> float | None:
        """The part of all chunks that the model did not have to encode."""
        total = sum(self.chunks.values())
        return 1 - self.chunks["encoded"] / total if total else None


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker slot, how long ago its process said that it lives, and what it cannot do."""

    slot: str
    host: str
    pid: int
    seen_seconds: float
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All collections over one window that ends at `evaluated_at`."""

    evaluated_at: datetime
    window_seconds: float
    collections: Mapping[str, CollectionReport]
    workers: Sequence[WorkerSeen]


def build_report(readings: Readings) -> Report:
    """The report of what was read."""
    return Report(
        evaluated_at=readings.at,
        window_seconds=(readings.at - readings.since).total_seconds(),
        collections={each.name: _collection(each, readings) for each in readings.collections},
        workers=[_worker(each, readings.at) for each in readings.workers],
    )


def _collection(collection: CollectionReading, readings: Readings) -> CollectionReport:
    name = collection.name
    waiting = [row for row in readings.pending if row.collection == name]
    pending = {lane.value: sum(row.count for row in waiting if row.lane == lane) for lane in Lane}
    oldest = min((row.oldest for row in waiting if row.oldest is not None), default=None)
    by_stage = {stage: _delays(readings, name, stage) for stage in STAGES}
    counters = {counter: value for (owner, counter), value in readings.counters.items() if owner == name}
    return CollectionReport(
        pending=pending,
        oldest_pending_seconds=None if oldest is None else max((readings.at - oldest).total_seconds(), 0.0),
        dead_letters=readings.dead_letters.get(name, 0),
        delay=by_stage[TOTAL],
        stages=_stages(by_stage),
        outcomes={outcome.value: counters.get(f"outcome_{outcome.value}", 0) for outcome in Outcome},
        chunks={result: counters.get(f"chunks_{result}", 0) for result in CHUNK_RESULTS},
        load=_load(collection, pending[Lane.BACKFILL]),
        backfilled=counters.get("backfilled", 0),
        clock_negative=counters.get("clock_negative", 0),
    )


def _delays(readings: Readings, collection: str, stage: str) -> Delays:
    minutes = (row.sketch for row in readings.sketches if row.collection == collection and row.stage == stage)
    found: dict[str, Any] = summary(merged(minutes))
    return Delays(**found)


def _stages(by_stage: Mapping[str, Delays]) -> dict[str, Stage]:
    seconds = {stage: (by_stage[stage].mean or 0.0) * by_stage[stage].count for stage in PARTS}
    total = sum(seconds.values())
    return {
        stage: Stage(by_stage[stage], seconds[stage] / total if total else None, stage in APPROXIMATE)
        for stage in PARTS
    }


def _load(collection: CollectionReading, backfill: int) -> FirstLoad:
    rows = collection.load_detail.get("rows")
    if not isinstance(rows, int):
        return FirstLoad(collection.load_state, None, None)
    searchable = max(0.0, 1 - backfill / rows) if rows else 1.0
    return FirstLoad(collection.load_state, rows, searchable)


def _worker(worker: WorkerReading, at: datetime) -> WorkerSeen:
    seen = max((at - worker.seen_at).total_seconds(), 0.0)
    return WorkerSeen(worker.slot, worker.host, worker.pid, seen, worker.problems)


def as_json(report: Report) -> dict[str, Any]:
    """The report for a machine. Keys are only ever added."""
    return {
        "evaluated_at": report.evaluated_at.astimezone(UTC).isoformat(),
        "window_seconds": report.window_seconds,
        "collections": {name: _as_json(each) for name, each in report.collections.items()},
        "workers": [_rounded(asdict(worker).items()) for worker in report.workers],
    }


def _as_json(collection: CollectionReport) -> dict[str, Any]:
    oldest = {"oldest_pending_seconds": collection.oldest_pending_seconds}
    return {
        "pending": dict(collection.pending),
        **_rounded(oldest.items()),
        "dead_letters": collection.dead_letters,
        "delay_seconds": _rounded(asdict(collection.delay).items()),
        "stages": {name: _stage_as_json(stage) for name, stage in collection.stages.items()},
        "outcomes": dict(collection.outcomes),
        "chunks": dict(collection.chunks),
        "load_state": collection.load.state,
        "load": _rounded({"rows": collection.load.rows, "searchable": collection.load.searchable}.items()),
        "backfilled": collection.backfilled,
        "clock_negative": collection.clock_negative,
    }


def _stage_as_json(stage: Stage) -> dict[str, Any]:
    share = {"share": stage.share, "approximate": stage.approximate}
    return _rounded([*asdict(stage.delays).items(), *share.items()])


def _rounded(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Microseconds are the clocks' resolution."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in items}
