"""The sink as the monitor uses it: one snapshot to judge by, and what it writes down. Blocking, one connection."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from connectors.postgres.capture_state import SILENT_SECONDS
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.freshness import Verdict
from schemas.readings import BLOCKED_SECONDS

SQL: Final = Queries.load("freshness")
Connection = psycopg.Connection[Any]

#: Two encodings of nearly the same short text; a broken model or a wrong vector is far below.
LEAST_COSINE: Final = 0.5


@dataclass(frozen=True, slots=True)
class BlockedSeen:
    """A worker that waits until somebody mends what the reason names."""

    slot: str
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class CollectionSeen:
    """One collection in the snapshot. Moments are commits by the source's clock, `violated_at` the sink's.

    `pending`: texts of the live lane. `undated`: open dead letters without a commit time as (topic, partition, offset).
    `doubted`: the commit that put the oldest key in doubt (H9).
    """

    name: str
    load_state: str
    load_detail: Mapping[str, Any]
    generation: int | None
    lineage: int | None
    watermark: datetime | None
    violations: int
    violated_at: datetime | None
    pending: int
    pending_since: datetime | None
    dead_letters: int
    letter_since: datetime | None
    doubted: datetime | None
    undated: Sequence[tuple[str, int, int]] = ()
    blocked: Sequence[BlockedSeen] = ()

    @property
    def unreflected(self) -> datetime | None:
        """The oldest commit that was taken in and is not searchable."""
        return min(
            (at for at in (self.pending_since, self.letter_since, self.doubted) if at is not None),
            default=None,
        )


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker that has ever run, how long ago it said that it lives, and whether it holds its slot."""

    slot: str
    host: str
    pid: int
    seen_seconds: float
    holds_slot: bool
    problems: Sequence[str] = ()

    @property
    def alive(self) -> bool:
        """One that hangs, or is cut off from the sink, may hold its slot for long."""
        return self.holds_slot and self.seen_seconds < SILENT_SECONDS


@dataclass(frozen=True, slots=True)
class SinkSeen:
    """All that a verdict needs of the sink, of one moment. `positions`: next offset by topic and partition."""

    at: datetime
    lineage: int
    collections: Mapping[str, CollectionSeen]
    positions: Mapping[str, Mapping[int, int]]
    workers: Sequence[WorkerSeen] = ()
    gaps: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class CanaryFound:
    """What a search for the stored canary has found; `number` 0: nothing yet. `error`: what is wrong with it.

    `delay_seconds`: from its commit until it was searchable; `age_seconds`: since then.
    """

    number: int
    cosine: float | None = None
    error: str = ""
    delay_seconds: float | None = None
    age_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Proven:
    """A watermark that a finished round proves of a live generation."""

    collection: str
    generation: int
    round: int
    watermark: datetime


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One row of `upwell.evaluation`."""

    collection: str
    verdict: Verdict
    threshold_seconds: float
    watermark: datetime | None
    pending: int
    dead_letters: int


@dataclass(slots=True)
class FreshnessStore:
    """`connection` is in autocommit mode. Every method raises SinkUnavailable."""

    connection: Connection
    _delay: float | None = field(default=None)

    def look(self, names: Collection[str], topics: Collection[str]) -> SinkSeen:
        """The snapshot. `topics`: those whose positions are wanted."""
        of = {"names": list(names), "topics": list(topics), "blocked_seconds": BLOCKED_SECONDS}
        with sink_errors(), self.connection.transaction():
            self.connection.execute(SQL["one_snapshot"])
            with self.connection.pipeline():
                now, collections, letters, positions, workers, blocked, gaps = (
                    self.connection.execute(SQL[query], of)
                    for query in (
                        "now", "collections", "undated_letters", "positions", "workers", "blocked", "gaps",
                    )
                )  # fmt: skip
            at, lineage = now.fetchall()[0]
            stuck: dict[str, list[BlockedSeen]] = {}
            for name, *row in blocked.fetchall():
                stuck.setdefault(name, []).append(BlockedSeen(*row))
            undated: dict[str, list[tuple[str, int, int]]] = {}
            for name, *letter in letters.fetchall():
                undated.setdefault(name, []).append((letter[0], letter[1], letter[2]))
            placed: dict[str, dict[int, int]] = {}
            for topic, partition, offset in positions.fetchall():
                placed.setdefault(topic, {})[partition] = offset
            return SinkSeen(
                at=at,
                lineage=lineage,
                collections={
                    row[0]: CollectionSeen(*[*row, undated.get(row[0], ()), stuck.get(row[0], ())])
                    for row in collections.fetchall()
                },
                positions=placed,
                workers=[WorkerSeen(*row) for row in workers.fetchall()],
                gaps=[row[0] for row in gaps.fetchall()],
            )

    def overdue(self, names: Collection[str], source_ahead_seconds: float) -> Mapping[str, int]:
        """Changes by collection that were committed longer ago than the threshold and are not searchable."""
        of = {"names": list(names), "ahead": source_ahead_seconds}
        return {name: int(number) for name, number in self._rows("overdue", of)}

    def find_canary(self) -> CanaryFound:
        """Search for the canary by its own stored vector."""
        generation = next(iter(self._rows("canary_generation")), None)
        if generation is None:
            return CanaryFound(0, error="its collection is not in the sink; run `upwell migrate`")
        number, model = generation
        rows = self._rows("find_canary", {"model": model, "generation": number})
        if not rows:
            return CanaryFound(0)
        text, score, cosine, delay, age = rows[0]
        self._delay = delay = self._delay if delay is None else delay
        if cosine is None:
            self._execute("keep_reference", {"generation": number})
            cosine = 1.0
        if score < 0.999:
            return CanaryFound(0, cosine, f"a search with its own vector has found {score:.3f}")
        if cosine < LEAST_COSINE:
            return CanaryFound(0, cosine, f"its vector has a cosine of {cosine:.3f} to the first one's")
        digits = text.rpartition(" ")[2]
        return CanaryFound(int(digits) if digits.isdecimal() else 0, cosine, "", delay, age)

    def raise_watermarks(self, lineage: int, proven: Sequence[Proven]) -> None:
        """A lower one than there is, or one of another generation than the live one, changes nothing."""
        if proven:
            self._execute(
                "raise_watermarks",
                {
                    "lineage": lineage,
                    "collections": [each.collection for each in proven],
                    "generations": [each.generation for each in proven],
                    "rounds": [each.round for each in proven],
                    "watermarks": [each.watermark for each in proven],
                },
            )

    def write(
        self, lineage: int, at: datetime, source_ahead_seconds: float, evaluations: Sequence[Evaluation]
    ) -> None:
        """The evaluation of every collection at `at` of the sink's clock."""
        self._execute(
            "write_evaluations",
            {
                "lineage": lineage,
                "at": at,
                "ahead": source_ahead_seconds,
                "collections": [each.collection for each in evaluations],
                "verdicts": [each.verdict.state.value for each in evaluations],
                "reasons": [each.verdict.reason for each in evaluations],
                "thresholds": [each.threshold_seconds for each in evaluations],
                "watermarks": [each.watermark for each in evaluations],
                "pending": [each.pending for each in evaluations],
                "letters": [each.dead_letters for each in evaluations],
            },
        )

    def summarise(self, summaries: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
        """Delay percentiles and SLO as JSON, by collection."""
        self._execute(
            "write_summaries",
            {
                "collections": list(summaries),
                "delays": [Jsonb(dict(delay)) for delay, _ in summaries.values()],
                "slos": [Jsonb(dict(slo)) for _, slo in summaries.values()],
            },
        )

    def canary_seen(self, lineage: int) -> tuple[int, int] | None:
        """Next offset of the canary's topic and the number before it, if anybody has read it."""
        found = self._rows("canary_seen", {"lineage": lineage})
        return (found[0][0], found[0][1]) if found else None

    def see_canary(self, lineage: int, next_offset: int, number: int) -> None:
        self._execute("see_canary", {"lineage": lineage, "next_offset": next_offset, "number": number})

    def add_gap(self, lineage: int, reason: str) -> None:
        """Changes are lost; it is said until the next lineage."""
        self._execute("add_gap", {"lineage": lineage, "reason": reason})

    def register(self, name: str, host: str, pid: int, url: str, version: str) -> None:
        values = {"name": name, "host": host, "pid": pid, "url": url, "version": version}
        self._execute("register_monitor", values)
        self._execute("forget_monitors", {})

    def seen(self, name: str) -> None:
        self._execute("seen_monitor", {"name": name})

    def _rows(self, query: str, parameters: Mapping[str, object] | None = None) -> list[Any]:
        with sink_errors():
            return self.connection.execute(SQL[query], parameters or {}).fetchall()

    def _execute(self, query: str, parameters: Mapping[str, object]) -> None:
        with sink_errors():
            self.connection.execute(SQL[query], parameters)
