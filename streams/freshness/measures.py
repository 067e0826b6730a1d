"""What a worker measures: delays by stage, and counts of outcomes and chunks, by collection and minute.

Commit times are the source's clock and visibility the sink's; negative differences are clamped and counted as
`clock_negative` (DESIGN 7). Stages: capture (commit -> Kafka), queue (Kafka -> taken in), wait (pending), embed, write;
`total` is commit -> searchable.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, Final, Protocol

from schemas.change import Change, Undecodable
from schemas.freshness import SlowChange
from schemas.sink import Claim, IntakePlan, Lane
from streams.freshness.sketches import freeze, new_sketch

STAGES: Final = ("capture", "queue", "wait", "embed", "write", "total")
#: A sketch replaces what the sink has of its minute, so it is held while a late measurement may still add to it.
HELD: Final = timedelta(minutes=2)
#: How many of the slowest changes of a minute and collection are kept by each worker.
SLOWEST: Final = 10


@dataclass(frozen=True, slots=True)
class Drained:
    """What changed since the last drain, by (collection, minute, name): counters to add, whole sketches to replace.

    `judged`: changes that became searchable within the threshold and later, to add, by (collection, minute).
    `slow`: by (collection, minute) the slowest changes, the slowest first, to replace too.
    """

    counters: dict[tuple[str, datetime, str], int] = field(default_factory=dict)
    sketches: dict[tuple[str, datetime, str], dict[str, Any]] = field(default_factory=dict)
    judged: dict[tuple[str, datetime], tuple[int, int]] = field(default_factory=dict)
    slow: dict[tuple[str, datetime], list[SlowChange]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.counters or self.sketches or self.judged or self.slow)


class Observer(Protocol):
    """Is told all that is measured, as it is measured; it must be quick."""

    def counted(self, collection: str, name: str, number: int) -> None: ...

    def delayed(self, collection: str, stage: str, seconds: float, weight: int) -> None: ...

    def encoded(self, collection: str, seconds: float) -> None: ...


class Measures:
    """Not thread-safe: lives on the event loop. `thresholds`: seconds by collection; of others no change is judged."""

    #: Set by a worker that exposes metrics.
    observer: Observer | None = None

    def __init__(self, thresholds: Mapping[str, float] | None = None) -> None:
        self._thresholds = dict(thresholds or {})
        self._judged: dict[tuple[str, datetime], tuple[int, int]] = {}
        self._counters: dict[tuple[str, datetime, str], int] = {}
        self._sketches: dict[tuple[str, datetime, str], Any] = {}
        self._touched: set[tuple[str, datetime, str]] = set()
        self._slow: dict[tuple[str, datetime], list[_Ranked]] = {}
        self._slow_touched: set[tuple[str, datetime]] = set()

    def count(self, collection: str, at: datetime, name: str, number: int = 1) -> None:
        """Add `number` to a counter of the minute of `at`."""
        if number:
            place = (collection, _minute(at), name)
            self._counters[place] = self._counters.get(place, 0) + number
            if self.observer is not None:
                self.observer.counted(collection, name, number)

    def encoded(self, collection: str, seconds: float) -> None:
        """One call of the model, for all texts of a batch."""
        if self.observer is not None:
            self.observer.encoded(collection, seconds)

    def delay(self, collection: str, at: datetime, stage: str, seconds: float, weight: int = 1) -> None:
        """Add a delay, `weight` changes with the same one."""
        self._delays(collection, at, stage, [(seconds, weight)])

    def _delays(self, collection: str, at: datetime, stage: str, found: Sequence[tuple[float, int]]) -> None:
        """Add delays with their weights, all of one transaction at once: there may be thousands a second."""
        if not found:
            return
        place, observer = (collection, _minute(at), stage), self.observer
        sketch = self._sketches.get(place)
        if sketch is None:
            sketch = self._sketches[place] = new_sketch()
        for seconds, weight in found:
            if seconds < 0:
                self.count(collection, at, "clock_negative", weight)
            sketch.add(max(seconds, 0.0), weight)
            if observer is not None:
                observer.delayed(collection, stage, max(seconds, 0.0), weight)
        self._touched.add(place)

    def slow(self, change: SlowChange) -> None:
        """Keep it if it is one of the slowest of its collection and minute."""
        place = (change.collection, _minute(change.visible_at))
        heap, ranked = (
            self._slow.setdefault(place, []),
            (change.seconds, change.key, change.committed_at, change),
        )
        if any(each[:3] == ranked[:3] for each in heap):
            return
        if len(heap) < SLOWEST:
            heapq.heappush(heap, ranked)
        elif heapq.heappushpop(heap, ranked) is ranked:
            return
        self._slow_touched.add(place)

    def visible(self, collection: str, at: datetime, seconds: float, weight: int = 1) -> None:
        """`weight` changes became searchable: their total delay, and whether the SLO has them as good."""
        self._visible(collection, at, [(seconds, weight)])

    def _visible(self, collection: str, at: datetime, found: Sequence[tuple[float, int]]) -> None:
        self._delays(collection, at, "total", found)
        threshold = self._thresholds.get(collection)
        if threshold is not None and found:
            good = sum(weight for seconds, weight in found if seconds <= threshold)
            self._judge((collection, _minute(at)), good, sum(weight for _, weight in found) - good)

    def _judge(self, place: tuple[str, datetime], good: int, bad: int) -> None:
        before = self._judged.get(place, (0, 0))
        self._judged[place] = (before[0] + good, before[1] + bad)

    def taken_in(
        self, collection: str, events: Sequence[Change | Undecodable], plan: IntakePlan, visible_at: datetime
    ) -> None:
        """After an intake commit: outcomes, the first two stages, and the total of what needs no vector."""
        for outcome, number in plan.outcomes.items():
            self.count(collection, visible_at, f"outcome_{outcome.value}", number)
        streamed = [
            (event.key, event.origin.committed_at, event.kafka_at)
            for event in events
            if isinstance(event, Change) and not event.origin.snapshot
            if event.kafka_at is not None and event.origin.committed_at is not None
        ]
        captured = [((kafka_at - committed_at).total_seconds(), 1) for _, committed_at, kafka_at in streamed]
        self._delays(collection, visible_at, "capture", captured)
        queued = [((visible_at - kafka_at).total_seconds(), 1) for _, _, kafka_at in streamed]
        self._delays(collection, visible_at, "queue", queued)
        at_kafka = {(key, committed_at): kafka_at for key, committed_at, kafka_at in streamed}
        to_embed = sum(write.embed == "pending" and write.lane is Lane.LIVE for write in plan.writes)
        self.count(collection, visible_at, "to_embed", to_embed)
        done = [
            (write.committed_since, write)
            for write in plan.writes
            if write.embed != "pending" and write.committed_since is not None
        ]
        waited = [((visible_at - since).total_seconds(), write.changes) for since, write in done]
        self._visible(collection, visible_at, waited)
        for since, write in heapq.nsmallest(SLOWEST, done, key=itemgetter(0)):
            stages = _intake_stages(at_kafka.get((write.key, since)), since, visible_at)
            self._slowest(collection, write.key, since, visible_at, stages)
        if plan.fence_committed_at is not None:
            self.visible(collection, visible_at, (visible_at - plan.fence_committed_at).total_seconds())

    def searchable(self, claim: Claim, visible_at: datetime, embed_seconds: float) -> None:
        """After an embed commit that made a claim's text searchable. Backfill has no delay."""
        if claim.pending_since is None:
            self.count(claim.collection, visible_at, "backfilled")
            return
        since_claim = (visible_at - claim.claimed_at).total_seconds()
        waited = (claim.claimed_at - claim.taken_in_at).total_seconds()
        total = (visible_at - claim.pending_since).total_seconds()
        self.delay(claim.collection, visible_at, "wait", waited)
        self.delay(claim.collection, visible_at, "embed", embed_seconds)
        self.delay(claim.collection, visible_at, "write", since_claim - embed_seconds)
        self.visible(claim.collection, visible_at, total, max(claim.changes, 1))
        stages = {
            "capture_and_queue": (claim.taken_in_at - claim.pending_since).total_seconds(),
            "wait": waited,
            "embed": embed_seconds,
            "write": since_claim - embed_seconds,
        }
        self._slowest(claim.collection, claim.key, claim.pending_since, visible_at, stages)

    def _slowest(
        self, collection: str, key: str, since: datetime, visible_at: datetime, stages: Mapping[str, float]
    ) -> None:
        seconds = max((visible_at - since).total_seconds(), 0.0)
        known = {name: round(max(spent, 0.0), 6) for name, spent in stages.items()}
        self.slow(SlowChange(collection, key, seconds, since, visible_at, known))

    def worked(self, collection: str, at: datetime, texts: int, seconds: float) -> None:
        """The embedder was busy with texts, whatever became of them: how fast it is while it has work."""
        self.count(collection, at, "embed_texts", texts)
        self.count(collection, at, "embed_busy_ms", max(round(seconds * 1000), 1))

    def drain(self) -> Drained:
        """What to write to the sink now. Sketches of minutes that are over for `HELD` are forgotten once written."""
        drained = Drained(
            dict(self._counters),
            {at: freeze(self._sketches[at]) for at in self._touched},
            dict(self._judged),
            {
                at: [ranked[-1] for ranked in sorted(self._slow[at], reverse=True)]
                for at in self._slow_touched
            },
        )
        self._counters.clear()
        self._judged.clear()
        newest = max((minute for _, minute, _ in self._sketches), default=None)
        for place in [place for place in self._sketches if newest is not None and place[1] < newest - HELD]:
            del self._sketches[place]
        for at in [at for at in self._slow if newest is not None and at[1] < newest - HELD]:
            del self._slow[at]
        self._touched.clear()
        self._slow_touched.clear()
        return drained

    def give_back(self, drained: Drained) -> None:
        """The write failed: count these again at the next drain (sketches of a past minute are lost to the report)."""
        for place, number in drained.counters.items():
            self._counters[place] = self._counters.get(place, 0) + number
        for minute, (good, bad) in drained.judged.items():
            self._judge(minute, good, bad)
        self._touched |= {place for place in drained.sketches if place in self._sketches}
        for change in (change for changes in drained.slow.values() for change in changes):
            self.slow(change)
        self._slow_touched |= set(drained.slow)


#: Seconds, key, commit time and the change: no two with the same first three are kept.
_Ranked = tuple[float, str, datetime, SlowChange]


def _intake_stages(kafka_at: datetime | None, since: datetime, visible_at: datetime) -> dict[str, float]:
    """Of the oldest change that a write folds together, if its Kafka time is known."""
    if kafka_at is None:
        return {}
    return {
        "capture": (kafka_at - since).total_seconds(),
        "queue": (visible_at - kafka_at).total_seconds(),
    }


def _minute(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0)
