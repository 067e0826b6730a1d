"""What a report reads from the sink: all of it belongs to one moment of the sink's clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from schemas.freshness import Bucket, Freshness, SlowChange

#: What no worker has said for so long is over: a blocked collection is tried again every 5 s at most.
BLOCKED_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class CollectionReading:
    """A row of `upwell.collection`. `load_detail` is the first load's own state, empty if there is none."""

    name: str
    load_state: str
    load_detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PendingReading:
    """Pending rows of one lane of the live generation. `oldest`: least commit time, None if only a load's rows wait."""

    collection: str
    lane: str
    count: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class SketchReading:
    """Delays of one stage over some minutes, in the form of `streams.freshness.sketches.freeze`."""

    collection: str
    stage: str
    sketch: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BlockedReading:
    """A collection that stands still until somebody mends what `reason` names, and for how long, as a worker says."""

    collection: str
    slot: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerReading:
    """A row of `upwell.worker`: a worker slot, when its process was last seen, and what it cannot do."""

    slot: str
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class MonitorReading:
    """A row of `upwell.monitor`: who evaluates, and when it was last seen."""

    name: str
    host: str
    pid: int
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Readings:
    """One snapshot. Counters and sketches are of whole minutes, from the one that `since` falls into up to `at`.

    `dead_letters`: open ones by collection; `counters`: sums over writers by (collection, name). `freshness`: one for
    each collection. `slow`: the slowest changes of the window, at most ten of each collection, the slowest first.
    `buckets`: the history of each collection in the window, in order of time. The canary's collection is in none.
    """

    at: datetime
    since: datetime
    collections: Sequence[CollectionReading] = ()
    pending: Sequence[PendingReading] = ()
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[tuple[str, str], int] = field(default_factory=dict)
    sketches: Sequence[SketchReading] = ()
    workers: Sequence[WorkerReading] = ()
    freshness: Sequence[Freshness] = ()
    slow: Sequence[SlowChange] = ()
    buckets: Mapping[str, Sequence[Bucket]] = field(default_factory=dict)
    monitors: Sequence[MonitorReading] = ()


@dataclass(frozen=True, slots=True)
class GenerationReading:
    """A generation of a collection with the chunks that it has of one key, in order (`chunk_no`, `chunk_text`,
    `chunk_hash`, `embedded_at`).
    """

    number: int
    state: str
    model: str
    template: str
    created_at: datetime
    chunks: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that the sink holds of one key. `record` is None if it was never taken in, or was truncated away.

    `audit`: the newest rows first, of `audit_rows`. `vacuumed`: when each of the collection's tables was last.
    """

    at: datetime
    collection: str
    table: str
    key: str
    record: Mapping[str, Any] | None
    generations: Sequence[GenerationReading]
    pending: Sequence[Mapping[str, Any]]
    dead_letters: Sequence[Mapping[str, Any]]
    in_doubt: Mapping[str, Any] | None
    audit: Sequence[Mapping[str, Any]]
    audit_rows: int
    vacuumed: Mapping[str, datetime | None]

    @property
    def known(self) -> bool:
        """Whether anything at all is held of the key."""
        return self.record is not None or bool(self.audit_rows or self.dead_letters or self.pending)
