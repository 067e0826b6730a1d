"""One evaluation: from what the probes and the sink say to watermarks and verdicts. Pure but for `Sights`' lock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from connectors.debezium.naming import Naming
from connectors.postgres.freshness import CanaryFound, CollectionSeen, Proven, SinkSeen
from schemas.freshness import CANARY, Verdict
from streams.freshness.probes import Sights
from streams.freshness.rounds import Ends, OpenLetter, Reflected, Rounds, behind, lost
from streams.freshness.summaries import Summary
from streams.freshness.verdict import Canary, Neighbour, Pipeline, Standing, judge
from streams.settings import Settings


@dataclass(frozen=True, slots=True)
class Judged:
    """One collection as it is judged, with what it is judged by. `gap`: changes that are lost, in words."""

    verdict: Verdict
    standing: Standing
    seen: CollectionSeen
    watermark: datetime | None
    gap: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation of all collections. `at`: our own seconds; `ahead_seconds`: the source's clock less the sink's."""

    at: float
    evaluated_at: datetime
    sink: SinkSeen
    canary: CanaryFound
    judged: Mapping[str, Judged]
    ahead_seconds: float


@dataclass(slots=True)
class Evaluator:
    """Keeps between evaluations only which collections a round was finished for, and when each was last loading."""

    settings: Settings
    sights: Sights
    begun: float = field(default_factory=time.monotonic)
    measured: set[str] = field(default_factory=set)
    loading: dict[str, float] = field(default_factory=dict)

    def topics(self, naming: Naming) -> dict[str, str]:
        """Topic by collection, the canary's among them."""
        return {name: naming.topic(spec.table) for name, spec in self.settings.served.items()}

    def follow(self, lineage: int) -> Naming | None:
        """Make a lineage that has begun the one that all probes look at; what was measured of another is nothing."""
        sights = self.sights
        with sights.lock:
            if lineage and (sights.naming is None or sights.naming.lineage != lineage):
                sights.naming = Naming(self.settings.name, lineage)
                sights.rounds, sights.ends, sights.ends_at = Rounds(), None, 0.0
                sights.gap = sights.missing = ""
                sights.canary_read = None
                sights.topics = tuple(self.topics(sights.naming).values())
                self.measured.clear()
            return sights.naming

    def prove(self, naming: Naming, sink: SinkSeen, canary: CanaryFound) -> list[Proven]:
        """The watermarks that finished rounds prove.

        While a table is being loaded, rows from before the round are not there yet: nothing is proven (H37).
        """
        proven: list[Proven] = []
        with self.sights.lock:
            rounds = self.sights.rounds
            for name, topic in self.topics(naming).items():
                seen = sink.collections.get(name)
                if seen is None or seen.generation is None:
                    continue
                done = rounds.complete(name, reflected(topic, sink, seen), canary.number)
                if done is not None and seen.load_state == "complete":
                    proven.append(Proven(name, seen.generation, done[0].number, done[1]))
                    self.measured.add(name)
            rounds.forget(name for name in sink.collections if name != CANARY)
        return proven

    def judge(
        self,
        sink: SinkSeen,
        canary: CanaryFound,
        neighbours: Mapping[str, Neighbour],
        watermarks: Mapping[str, datetime],
        summary: Summary,
    ) -> dict[str, Judged]:
        """Every collection of the spec that the sink has. `watermarks`: as they are now."""
        now = time.monotonic()
        sights = self.sights
        with sights.lock:
            pipeline = self._pipeline(sink, canary, neighbours, now)
            source_now, naming, ends = sights.now_at_source(now), sights.naming, sights.ends
        found = {}
        for name, spec in self.settings.collections.items():
            seen = sink.collections.get(name)
            if seen is None:
                continue
            watermark = watermarks.get(name)
            topic = "" if naming is None else naming.topic(spec.table)
            standing = self._standing(
                seen,
                reflected(topic, sink, seen),
                ends,
                watermark=watermark,
                source_now=source_now,
                sink=sink,
                summary=summary,
            )
            gap = pipeline.gap or standing.lost
            found[name] = Judged(judge(standing, pipeline), standing, seen, watermark, gap)
        return found

    def _pipeline(
        self, sink: SinkSeen, canary: CanaryFound, neighbours: Mapping[str, Neighbour], now: float
    ) -> Pipeline:
        alive = [worker for worker in sink.workers if worker.alive]
        sights = self.sights
        gaps = [sights.gap, sights.missing, *sink.gaps]
        return Pipeline(
            neighbours=neighbours,
            connector=sights.connector,
            canary=canary_ages(sights.rounds, canary, now),
            workers=len(alive),
            problems=[problem for worker in alive for problem in worker.problems],
            gap=next((gap for gap in gaps if gap), ""),
            round_seconds=self.settings.monitor.round_seconds,
            rebuilds=self.settings.monitor.rebuild,
            up_seconds=now - self.begun,
        )

    def _standing(
        self,
        seen: CollectionSeen,
        of: Reflected,
        ends: Ends | None,
        *,
        watermark: datetime | None,
        source_now: datetime | None,
        sink: SinkSeen,
        summary: Summary,
    ) -> Standing:
        def age(at: datetime | None) -> float | None:
            return None if at is None or source_now is None else max(0.0, (source_now - at).total_seconds())

        violated = None if seen.violated_at is None else (sink.at - seen.violated_at).total_seconds()
        left = None if ends is None else behind(ends, of)
        waiting, forecast = summary.backfill.get(seen.name, 0) + (left or 0), summary.forecasts.get(seen.name)
        eta_seconds = None if forecast is None else forecast.eta_seconds
        return Standing(
            name=seen.name,
            threshold_seconds=self.settings.collections[seen.name].slo.threshold_seconds,
            load_state=seen.load_state,
            progress=load_progress(seen, sink.lineage, waiting, eta_seconds),
            staleness_seconds=age(watermark),
            measured=seen.name in self.measured,
            behind=left,
            pending=seen.pending,
            oldest_pending_seconds=age(seen.pending_since),
            dead_letters=seen.dead_letters,
            oldest_dead_letter_seconds=age(seen.letter_since),
            blocked=seen.blocked[0].reason if seen.blocked else "",
            lost="" if ends is None else lost(ends, of),
            violated_seconds=violated,
            loaded_seconds=self._loaded_seconds(seen),
        )

    def _loaded_seconds(self, seen: CollectionSeen) -> float | None:
        now = time.monotonic()
        if seen.load_state != "complete":
            self.loading[seen.name] = now
        since = self.loading.get(seen.name)
        return None if since is None else now - since


def reflected(topic: str, sink: SinkSeen, seen: CollectionSeen) -> Reflected:
    """What rounds need of a collection."""
    letters = [OpenLetter(*letter) for letter in seen.undated]
    return Reflected(topic, sink.positions.get(topic, {}), seen.unreflected, letters)


def canary_ages(rounds: Rounds, canary: CanaryFound, now: float) -> Canary:
    """How long the oldest canary waits at each step."""

    def oldest(begun: list[float]) -> float | None:
        return now - min(begun) if begun else None

    waiting = rounds.waiting
    return Canary(
        missing_seconds=oldest([each.begun for each in waiting if each.event_lsn is None]),
        unsettled_seconds=oldest(
            [each.begun for each in waiting if each.event_lsn is not None and not each.settled]
        ),
        unsearchable_seconds=oldest(
            [each.begun for each in waiting if each.event_lsn is not None and each.number > canary.number]
        ),
        error=canary.error,
    )


def load_progress(seen: CollectionSeen, lineage: int, waiting: int, eta_seconds: float | None) -> str:
    """How far a load is, in words. `waiting`: rows that are not searchable yet, in Kafka and in `pending`."""
    detail: Mapping[str, Any] = seen.load_detail
    what = "rebuild" if lineage > 1 else "first load"
    rows = detail.get("rows")
    if seen.load_state == "incomplete":
        if detail.get("reason") == "truncated":
            return f"{what}: truncated while it was being read, it is read again"
        return f"{what}: its table is not asked for yet; run `upwell connector apply`"
    if not isinstance(rows, int):
        return f"{what}: its table is being read, {waiting} rows wait to be searchable"
    share = max(0.0, 1 - waiting / rows) if rows else 1.0
    eta = f", about {eta_seconds:.0f} s to go" if waiting and eta_seconds else ""
    return f"{what}: {share:.0%} of {rows} rows are searchable{eta}"
