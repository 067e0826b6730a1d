"""What `upwell report` says, computed from one snapshot of the sink. Pure; the verdicts are the monitor's.

A window is a merge of its minutes' sketches, so its quantiles are within 1 %, its count, mean and maximum exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from schemas.change import Outcome
from schemas.freshness import Bucket, SlowChange, State, Verdict
from schemas.readings import CollectionReading, Readings, WorkerReading
from schemas.sink import Lane
from schemas.spec import Slo
from streams.freshness.forecast import Forecast
from streams.freshness.measures import STAGES
from streams.freshness.sketches import merged, summary
from streams.freshness.slo import BURN_WINDOWS
from streams.freshness.slow import why

TOTAL: Final = "total"
#: Stages of the total, in the order in which a change passes them.
PARTS: Final = tuple(stage for stage in STAGES if stage != TOTAL)
#: Stages that end or begin at the clock of Kafka Connect, so that its skew is in them (DESIGN 7).
APPROXIMATE: Final = frozenset({"capture", "queue"})
CHUNK_RESULTS: Final = ("encoded", "kept", "copied")
#: How many of the slowest changes a report has.
WORST: Final = 10
UNREAD: Final = Verdict(State.UNKNOWN, "no monitor has evaluated it yet; run `upwell monitor`")


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
    clocks made negative, counted as 0. `eta_seconds`: how long what is pending takes at the rate of the window, None if
    nothing became searchable in it. `slo` is JSON, whole also where nobody has evaluated. `evaluated_at` is the
    monitor's; `worst` has the slowest change first; `history` is in order of time.
    """

    verdict: Verdict
    evaluated_at: datetime | None
    watermark: datetime | None
    staleness_seconds: float | None
    slo: Mapping[str, Any]
    pending: Mapping[str, int]
    oldest_pending_seconds: float | None
    eta_seconds: float | None
    dead_letters: int
    delay: Delays
    stages: Mapping[str, Stage]
    outcomes: Mapping[str, int]
    chunks: Mapping[str, int]
    load: FirstLoad
    backfilled: int
    clock_negative: int
    worst: Sequence[SlowChange] = ()
    history: Sequence[Bucket] = ()

    @property
    def threshold_seconds(self) -> float:
        return float(self.slo["threshold_seconds"])

    @property
    def budget_used_up(self) -> bool:
        """Whether nothing is left of the error budget of changes or of that of minutes."""
        left = (self.slo["budget_remaining_ratio"], self.slo["time"]["budget_remaining_ratio"])
        return any(ratio is not None and ratio <= 0 for ratio in left)

    @property
    def changes_saved(self) -> float | None:
        """The part of all changes taken in that needed no work of the model: unchanged or superseded."""
        saved = self.outcomes["unchanged"] + self.outcomes["superseded"]
        return saved / self.taken_in if self.taken_in else None

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
class MonitorSeen:
    """A monitor, and how long ago it said that it lives."""

    name: str
    host: str
    pid: int
    seen_seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """All collections over one window that ends at `evaluated_at`, the moment of the snapshot by the sink's clock.

    `forecasts`: which threshold will be missed, and when; empty where nobody asked for them.
    """

    evaluated_at: datetime
    window_seconds: float
    collections: Mapping[str, CollectionReport]
    workers: Sequence[WorkerSeen]
    monitors: Sequence[MonitorSeen] = field(default_factory=list)
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)

    @property
    def worst(self) -> Sequence[SlowChange]:
        """The slowest changes of all collections, the slowest first."""
        found = (change for each in self.collections.values() for change in each.worst)
        return sorted(found, key=lambda change: -change.seconds)[:WORST]


def build_report(readings: Readings, slos: Mapping[str, Slo] | None = None) -> Report:
    """The report of what was read. `slos`: those of the spec, shown where no monitor has evaluated them yet."""
    return Report(
        evaluated_at=readings.at,
        window_seconds=(readings.at - readings.since).total_seconds(),
        collections={
            each.name: _collection(each, readings, (slos or {}).get(each.name, Slo()))
            for each in readings.collections
        },
        workers=[_worker(each, readings.at) for each in readings.workers],
        monitors=[
            MonitorSeen(
                each.name, each.host, each.pid, max((readings.at - each.seen_at).total_seconds(), 0.0)
            )
            for each in readings.monitors
        ],
    )


def _collection(collection: CollectionReading, readings: Readings, slo: Slo) -> CollectionReport:
    name = collection.name
    waiting = [row for row in readings.pending if row.collection == name]
    pending = {lane.value: sum(row.count for row in waiting if row.lane == lane) for lane in Lane}
    oldest = min((row.oldest for row in waiting if row.oldest is not None), default=None)
    by_stage = {stage: _delays(readings, name, stage) for stage in STAGES}
    counters = {counter: value for (owner, counter), value in readings.counters.items() if owner == name}
    freshness = next((row for row in readings.freshness if row.collection == name), None)
    worst = sorted((row for row in readings.slow if row.collection == name), key=lambda row: -row.seconds)
    backfilled, count = counters.get("backfilled", 0), by_stage[TOTAL].count
    return CollectionReport(
        verdict=UNREAD if freshness is None else freshness.verdict,
        evaluated_at=None if freshness is None else freshness.evaluated_at,
        watermark=None if freshness is None else freshness.watermark,
        staleness_seconds=None if freshness is None else freshness.staleness_seconds,
        slo=_slo({} if freshness is None else freshness.slo, slo),
        pending=pending,
        oldest_pending_seconds=None if oldest is None else max((readings.at - oldest).total_seconds(), 0.0),
        eta_seconds=_eta(
            sum(pending.values()), backfilled + count, (readings.at - readings.since).total_seconds()
        ),
        dead_letters=readings.dead_letters.get(name, 0),
        delay=by_stage[TOTAL],
        stages=_stages(by_stage),
        outcomes={outcome.value: counters.get(f"outcome_{outcome.value}", 0) for outcome in Outcome},
        chunks={result: counters.get(f"chunks_{result}", 0) for result in CHUNK_RESULTS},
        load=_load(collection, pending[Lane.BACKFILL]),
        backfilled=backfilled,
        clock_negative=counters.get("clock_negative", 0),
        worst=worst[:WORST],
        history=readings.buckets.get(name, ()),
    )


def _eta(waiting: int, done: int, window_seconds: float) -> float | None:
    if not waiting:
        return 0.0
    return waiting * window_seconds / done if done else None


def _slo(evaluated: Mapping[str, Any], slo: Slo) -> dict[str, Any]:
    """What a monitor has evaluated over what the spec says, so that every key is there."""
    rates: dict[str, float | None] = dict.fromkeys(BURN_WINDOWS)
    unknown: dict[str, Any] = {"sli": None, "budget_remaining_ratio": None, "burn_rates": rates}
    minutes = {"objective": slo.time_objective, **unknown, "bad_minutes": None, "minutes": None}
    found = {
        "threshold_seconds": slo.threshold_seconds,
        "objective": slo.objective,
        "window_days": slo.window_days,
        **unknown,
        "good": None,
        "bad": None,
        "overdue": None,
        "alerts": [],
        **evaluated,
    }
    return {
        **found,
        "burn_rates": {**rates, **found["burn_rates"]},
        "time": {**minutes, **evaluated.get("time", {})},
    }


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
        "collections": {
            name: {**_as_json(each), "forecast": _forecast_as_json(report.forecasts.get(name))}
            for name, each in report.collections.items()
        },
        "workers": [_rounded(asdict(worker).items()) for worker in report.workers],
        "monitors": [_rounded(asdict(monitor).items()) for monitor in report.monitors],
        "worst": [{"collection": change.collection, **_slow_as_json(change)} for change in report.worst],
    }


def _as_json(collection: CollectionReport) -> dict[str, Any]:
    waiting = {
        "oldest_pending_seconds": collection.oldest_pending_seconds,
        "eta_seconds": collection.eta_seconds,
    }
    return {
        "verdict": collection.verdict.state.value,
        "reason": collection.verdict.reason,
        "evaluated_at": _instant(collection.evaluated_at),
        "watermark": _instant(collection.watermark),
        **_rounded([("staleness_seconds", collection.staleness_seconds)]),
        "pending": dict(collection.pending),
        **_rounded(waiting.items()),
        "dead_letters": collection.dead_letters,
        "delay_seconds": _rounded(asdict(collection.delay).items()),
        "stages": {name: _stage_as_json(stage) for name, stage in collection.stages.items()},
        "slo": dict(collection.slo),
        "saved": _saved_as_json(collection),
        "worst": [_slow_as_json(change) for change in collection.worst],
        "outcomes": dict(collection.outcomes),
        "chunks": dict(collection.chunks),
        "load_state": collection.load.state,
        "load": _rounded({"rows": collection.load.rows, "searchable": collection.load.searchable}.items()),
        "backfilled": collection.backfilled,
        "clock_negative": collection.clock_negative,
    }


def _forecast_as_json(forecast: Forecast | None) -> dict[str, Any] | None:
    if forecast is None:
        return None
    numbers = {"eta_seconds": forecast.eta_seconds, "missed_in_seconds": forecast.missed_in_seconds}
    known = {"known": forecast.known, "workers_wanted": forecast.workers_wanted}
    return {**_rounded(numbers.items()), **known, "sentence": forecast.sentence}


def _saved_as_json(collection: CollectionReport) -> dict[str, Any]:
    """Work that was not done because it did not have to be."""
    ratios = {"changes_ratio": collection.changes_saved, "chunks_ratio": collection.chunks_saved}
    return {
        "unchanged": collection.outcomes["unchanged"],
        "superseded": collection.outcomes["superseded"],
        "chunks_kept": collection.chunks["kept"],
        "chunks_copied": collection.chunks["copied"],
        **_rounded(ratios.items()),
    }


def _slow_as_json(change: SlowChange) -> dict[str, Any]:
    return {
        "key": change.key,
        **_rounded([("seconds", change.seconds)]),
        "committed_at": _instant(change.committed_at),
        "visible_at": _instant(change.visible_at),
        "why": why(change.seconds, change.stages),
        "stages": _rounded(change.stages.items()),
    }


def _instant(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat()


def _stage_as_json(stage: Stage) -> dict[str, Any]:
    share = {"share": stage.share, "approximate": stage.approximate}
    return _rounded([*asdict(stage.delays).items(), *share.items()])


def _rounded(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Microseconds are the clocks' resolution."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in items}
