"""Verdicts, and what an SLO is computed from: the vocabulary of the monitor, the report and the page (DESIGN 7)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

#: The collection of the canary: `upwell.canary` at the source, taken in and embedded like any other. Not in the spec.
CANARY: Final = "canary"
CANARY_TABLE: Final = "upwell.canary"

#: An evaluation older than this says nothing any more; `upwell.freshness` has the same number.
EVALUATION_SECONDS: Final = 15.0


class State(enum.StrEnum):
    """FRESH: everything up to the threshold ago is searchable. STALE: it is not. INCOMPLETE: a first load or a rebuild
    goes on; apart from the SLO, and never FRESH. UNKNOWN: nobody can say; counts as bad.
    """

    FRESH = "FRESH"
    STALE = "STALE"
    INCOMPLETE = "INCOMPLETE"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence says what is broken and what to do next; also of FRESH it says something."""

    state: State
    reason: str


@dataclass(frozen=True, slots=True)
class Bucket:
    """A row of `upwell.freshness_history` with the changes of its minutes.

    Minutes by their worst verdict; `minutes` is 1 or, once rolled up, 60, of which those without an evaluation are in
    none of the four. `good` and `bad`: streamed changes that became searchable within the threshold, and later.
    """

    start: datetime
    minutes: int = 1
    fresh: int = 0
    stale: int = 0
    incomplete: int = 0
    unknown: int = 0
    staleness_max_seconds: float | None = None
    pending_max: int = 0
    good: int = 0
    bad: int = 0

    @property
    def end(self) -> datetime:
        return self.start + timedelta(minutes=self.minutes)


@dataclass(frozen=True, slots=True)
class SlowChange:
    """One of the slowest changes. `stages`: seconds by stage (capture, queue, wait, embed, write), where known.

    A change that waited for a vector has `capture_and_queue` for the first two: they were measured by another process.
    """

    collection: str
    key: str
    seconds: float
    committed_at: datetime
    visible_at: datetime
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Freshness:
    """A row of `upwell.freshness`: one collection's verdict as anybody may read it.

    `evaluated_at` and what depends on it is None if nobody ever evaluated. `slo` is JSON, as `upwell report` prints it.
    """

    collection: str
    verdict: Verdict
    watermark: datetime | None
    staleness_seconds: float | None
    threshold_seconds: float | None
    evaluated_at: datetime | None
    slo: Mapping[str, Any] = field(default_factory=dict)
