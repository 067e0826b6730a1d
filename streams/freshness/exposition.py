"""The monitor's metrics in Prometheus' text format. Pure: from what the monitor knows to bytes.

What is not known has no series, never a 0 that somebody made up. An evaluation that is too old keeps only what stays
true of it: its age, the verdict UNKNOWN, the watermark, and the staleness that grows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from connectors.postgres.capture_state import SILENT_SECONDS
from schemas.freshness import EVALUATION_SECONDS, State
from schemas.sink import Lane
from streams import metrics
from streams.metrics import Spec

#: For the header `Content-Type`, of `/metrics` everywhere.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
QUANTILES: Final = (("p50", "0.5"), ("p95", "0.95"), ("p99", "0.99"), ("max", "1"))

Labels = tuple[str, ...]
Sample = tuple[Spec, Labels, float]


def exposition(live: Mapping[str, Any], report: Mapping[str, Any] | None = None) -> bytes:
    """All series of the monitor. `live`: its live object; `report`: the report as `upwell report --json` has it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Samples([*_of(live, report)]))
    return generate_latest(registry)


class _Samples(Collector):
    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        """One family for each metric that has a sample, in the order of `metrics.py`."""
        for spec in metrics.ALL:
            found = [sample for sample in self._samples if sample[0] is spec]
            if found:
                yield _family(spec, found)


def _family(spec: Spec, samples: Sequence[Sample]) -> Metric:
    if spec.kind == "counter":
        counter = spec.counter()
        for _, labels, value in samples:
            counter.add_metric(labels, value)
        return counter
    gauge = spec.gauge()
    for _, labels, value in samples:
        gauge.add_metric(labels, value)
    return gauge


def _of(live: Mapping[str, Any], report: Mapping[str, Any] | None) -> Iterator[Sample]:
    yield metrics.BUILD, (version("upwell"),), 1.0
    age = live.get("age_seconds")
    is_old = age is None or age > EVALUATION_SECONDS
    yield from _one(metrics.EVALUATED_AT, _timestamp(live.get("evaluated_at")))
    yield from _one(metrics.EVALUATION_AGE, age)
    reported = (report or {}).get("collections") or {}
    blocked = {each.get("collection") for each in live.get("blocked") or ()}
    for name, found in (live.get("collections") or {}).items():
        yield from _aging(name, found, is_old=is_old)
        if not is_old:
            yield from _counted(name, found)
            yield metrics.BLOCKED, (name,), float(name in blocked)
            yield from _slo(name, found.get("slo") or (reported.get(name) or {}).get("slo") or {})
    for name, found in reported.items():
        yield from _delays(name, found)
    if not is_old:
        yield from _workers(live.get("workers"))
        yield from _canary(live.get("canary") or {})
        yield from _one(metrics.SOURCE_AHEAD, (live.get("clock") or {}).get("source_ahead_seconds"))
    yield from _line(live)


def _aging(name: str, found: Mapping[str, Any], *, is_old: bool) -> Iterator[Sample]:
    """What an old evaluation is still good for."""
    verdict = State.UNKNOWN.value if is_old else found.get("verdict", State.UNKNOWN.value)
    for state in State:
        yield metrics.VERDICT, (name, state.value), float(state.value == verdict)
    yield from _one(metrics.WATERMARK, _timestamp(found.get("watermark")), name)
    yield from _one(metrics.STALENESS, found.get("staleness_seconds"), name)
    yield from _one(metrics.THRESHOLD, found.get("threshold_seconds"), name)


def _counted(name: str, found: Mapping[str, Any]) -> Iterator[Sample]:
    pending, load = found.get("pending") or {}, found.get("load") or {}
    for lane in Lane:
        yield from _one(metrics.PENDING, pending.get(lane.value), name, lane.value)
    yield from _one(metrics.OLDEST_PENDING, found.get("oldest_pending_seconds"), name)
    yield from _one(metrics.ETA, found.get("eta_seconds"), name)
    yield from _one(metrics.DEAD_LETTERS, found.get("dead_letters"), name)
    yield from _one(metrics.CONSUMER_LAG, found.get("behind"), name)
    yield from _one(metrics.VIOLATIONS, found.get("violations"), name)
    if load.get("state"):
        yield metrics.LOAD_COMPLETE, (name,), float(load["state"] == "complete")
    yield from _one(metrics.LOAD_SEARCHABLE, load.get("searchable"), name)


def _slo(name: str, slo: Mapping[str, Any]) -> Iterator[Sample]:
    for sli, found in (("events", slo), ("time", slo.get("time") or {})):
        yield from _one(metrics.SLI, found.get("sli"), name, sli)
        yield from _one(metrics.OBJECTIVE, found.get("objective"), name, sli)
        yield from _one(metrics.BUDGET, found.get("budget_remaining_ratio"), name, sli)
        for window, rate in (found.get("burn_rates") or {}).items():
            yield from _one(metrics.BURN_RATE, rate, name, sli, window)


def _delays(name: str, found: Mapping[str, Any]) -> Iterator[Sample]:
    stages = {**(found.get("stages") or {}), "total": found.get("delay_seconds") or {}}
    for stage, delays in stages.items():
        for key, quantile in QUANTILES:
            yield from _one(metrics.REPORT_DELAY, delays.get(key), name, stage, quantile)


def _workers(workers: Sequence[Mapping[str, Any]] | None) -> Iterator[Sample]:
    """An empty list is the truth, too: no worker has ever said that it lives."""
    if workers is None:
        return
    yield metrics.WORKERS_ALIVE, (), float(sum(each["seen_seconds"] < SILENT_SECONDS for each in workers))
    for each in workers:
        yield from _one(metrics.WORKER_SEEN, each.get("seen_seconds"), each["slot"])
        yield metrics.WORKER_PROBLEMS, (each["slot"],), float(len(each.get("problems") or ()))


def _canary(canary: Mapping[str, Any]) -> Iterator[Sample]:
    if canary:
        yield metrics.CANARY_OK, (), float(bool(canary.get("number")) and not canary.get("error"))
    yield from _one(metrics.CANARY_DELAY, canary.get("delay_seconds"))
    yield from _one(metrics.CANARY_AGE, canary.get("age_seconds"))
    yield from _one(metrics.CANARY_COSINE, canary.get("cosine"))


def _line(live: Mapping[str, Any]) -> Iterator[Sample]:
    """Neighbours are asked by themselves, so these do not age with the evaluation."""
    neighbours = live.get("neighbours") or {}
    for name, found in neighbours.items():
        yield metrics.NEIGHBOUR_UP, (name,), float(bool(found.get("ok")))
        yield from _one(metrics.NEIGHBOUR_AGE, found.get("age_seconds"), name)
    if _answers(neighbours, "connect"):
        yield from _connector(live.get("connector"))
    if _answers(neighbours, "source"):
        yield from _slot(live.get("slot"))
    if live.get("lineage") is not None and live.get("gap") is not None:
        yield metrics.GAP, (), float(bool(live.get("gap")))
    yield from _one(metrics.ROUND_PERIOD, live.get("round_seconds"))
    under_way = [each for each in live.get("rounds") or () if each.get("step") != "done"]
    if under_way:
        yield metrics.ROUND_AGE, (), max(float(each["age_seconds"]) for each in under_way)


def _answers(neighbours: Mapping[str, Any], name: str) -> bool:
    return bool((neighbours.get(name) or {}).get("ok"))


def _connector(connector: Mapping[str, Any] | None) -> Iterator[Sample]:
    if connector is None:
        return
    running = connector.get("connector") == connector.get("task") == "RUNNING"
    yield metrics.CONNECTOR_UP, (), float(running)
    yield from _one(metrics.CONNECTOR_SINCE, connector.get("since_seconds"))
    yield from _one(metrics.CONNECTOR_RESTARTS, connector.get("restarts"))


def _slot(slot: Mapping[str, Any] | None) -> Iterator[Sample]:
    if slot is None:
        return
    yield metrics.SLOT_ACTIVE, (), float(bool(slot.get("active")))
    yield from _one(metrics.SLOT_RETAINED, slot.get("behind_bytes"))
    yield from _one(metrics.SLOT_SAFE, slot.get("safe_bytes"))


def _one(spec: Spec, value: float | None, *labels: str) -> Iterator[Sample]:
    if value is not None:
        yield spec, labels, float(value)


def _timestamp(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text).timestamp()
