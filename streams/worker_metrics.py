"""A worker's series. Sums are kept in plain dictionaries on the event loop, a few operations a change; Prometheus'
families are made only when somebody asks.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from schemas.change import Outcome
from schemas.freshness import CANARY
from schemas.sink import WriteOutcome
from streams import metrics
from streams.freshness.report import CHUNK_RESULTS
from streams.metrics import Spec
from streams.vitals import Vitals

#: Counters of `Measures`: the metric, the label's value beside the collection, and what one of them is in its unit.
COUNTERS: Final[Mapping[str, tuple[Spec, tuple[str, ...], float]]] = {
    **{f"outcome_{each.value}": (metrics.OUTCOMES, (each.value,), 1) for each in Outcome},
    **{f"chunks_{each}": (metrics.CHUNKS, (each,), 1) for each in CHUNK_RESULTS},
    **{f"embed_{each.value}": (metrics.DOCUMENTS, (each.value,), 1) for each in WriteOutcome},
    "embed_busy_ms": (metrics.EMBED_BUSY, (), 0.001),
    "backfilled": (metrics.BACKFILLED, (), 1),
    "clock_negative": (metrics.CLOCK_NEGATIVE, (), 1),
}


@dataclass(slots=True)
class _Histogram:
    """Counts by bucket, the last one for what is above all bounds."""

    bounds: tuple[float, ...]
    seconds: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float, weight: int) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += weight
        self.seconds += seconds * weight

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated, as Prometheus wants them."""
        total, found = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class WorkerMetrics(Collector):
    """Observes `Measures`, asks `vitals`. Lives on the event loop. The canary's collection has no series."""

    def __init__(self, vitals: Vitals) -> None:
        self._vitals, self._started = vitals, time.time()
        self._counts: dict[tuple[str, str], int] = {}
        self._delays: dict[tuple[str, ...], _Histogram] = {}
        self._encodes: dict[tuple[str, ...], _Histogram] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def counted(self, collection: str, name: str, number: int) -> None:
        place = (collection, name)
        self._counts[place] = self._counts.get(place, 0) + number

    def delayed(self, collection: str, stage: str, seconds: float, weight: int) -> None:
        _add(self._delays, (collection, stage), metrics.PROPAGATION, seconds, weight)

    def encoded(self, collection: str, seconds: float) -> None:
        _add(self._encodes, (collection,), metrics.ENCODE, seconds, 1)

    def text(self) -> bytes:
        """The text format of now."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield metrics.build_info(version("upwell"))
        yield from self._counters()
        yield _histogram(metrics.PROPAGATION, self._delays)
        yield _histogram(metrics.ENCODE, self._encodes)
        yield from self._state()

    def _counters(self) -> Iterator[Metric]:
        families = {spec: spec.counter() for spec, _, _ in COUNTERS.values()}
        for (collection, name), number in sorted(self._counts.items()):
            if name in COUNTERS and collection != CANARY:
                spec, labels, unit = COUNTERS[name]
                families[spec].add_metric([collection, *labels], number * unit)
        yield from families.values()
        retries = metrics.RETRIES.counter()
        for stage, number in self._vitals.retries.items():
            retries.add_metric([stage], number)
        yield retries

    def _state(self) -> Iterator[Metric]:
        for spec, value in (
            (metrics.WORKER_READY, float(not self._vitals.not_ready())),
            (metrics.WORKER_LIVE, float(not self._vitals.stuck())),
            (metrics.WORKER_STARTED, self._started),
        ):
            family = spec.gauge()
            family.add_metric([], value)
            yield family
        blocked = metrics.WORKER_BLOCKED.gauge()
        for collection in sorted(set(self._vitals.collections.values()) - {CANARY}):
            blocked.add_metric([collection], float(collection in self._vitals.blocked))
        yield blocked


def _add(
    into: dict[tuple[str, ...], _Histogram], labels: tuple[str, ...], spec: Spec, seconds: float, weight: int
) -> None:
    histogram = into.get(labels)
    if histogram is None:
        histogram = into[labels] = _Histogram(spec.buckets)
    histogram.add(seconds, weight)


def _histogram(spec: Spec, found: Mapping[tuple[str, ...], _Histogram]) -> Metric:
    family = spec.histogram()
    for labels, each in sorted(found.items()):
        if labels[0] != CANARY:
            family.add_metric(labels, each.buckets(), each.seconds)
    return family
