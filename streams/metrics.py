"""Every metric of upwell, with its labels and what it counts. Nothing else names one: monitor and workers make their
series from here, and tests compare alerts, dashboard and README with it.

No label has a key, a text or an error in it. `unit` is what the value counts; seconds, bytes and ratios end the name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

#: Upper bounds in seconds: from what an idle line takes to what nobody waits for.
DELAY_BUCKETS: Final = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0),
    *(120.0, 300.0, 900.0, 1800.0, 3600.0),
)
ENCODE_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric. `of`: who exposes it, "monitor", "worker" or "both"; `buckets`: of a histogram."""

    name: str
    kind: str
    unit: str
    of: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exposed(self) -> frozenset[str]:
        """The names that a query can use."""
        if self.kind == "histogram":
            return frozenset(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return frozenset({self.name})

    def gauge(self) -> GaugeMetricFamily:
        """An empty family to add samples to, with label values in the order of `labels`."""
        assert self.kind == "gauge", self.name
        return GaugeMetricFamily(self.name, self.help, labels=self.labels)

    def counter(self) -> CounterMetricFamily:
        assert self.kind == "counter", self.name
        return CounterMetricFamily(self.name, self.help, labels=self.labels)

    def histogram(self) -> HistogramMetricFamily:
        assert self.kind == "histogram", self.name
        return HistogramMetricFamily(self.name, self.help, labels=self.labels)


def _gauge(name: str, unit: str, help: str, *labels: str, of: str = "monitor") -> Spec:
    return Spec(name, "gauge", unit, of, help, labels)


def _counter(name: str, unit: str, help: str, *labels: str, of: str = "worker") -> Spec:
    return Spec(name, "counter", unit, of, help, labels)


BUILD = _gauge(
    "upwell_build_info", "1", "Always 1; the version of upwell is its label.", "version", of="both"
)

# The monitor: what it judged, and when

EVALUATED_AT = _gauge(
    "upwell_evaluation_timestamp_seconds",
    "seconds",
    "When all collections were last evaluated, in seconds since the epoch by the sink's clock.",
)
EVALUATION_AGE = _gauge(
    "upwell_evaluation_age_seconds", "seconds", "Seconds since the last evaluation; over 15 it says nothing."
)
VERDICT = _gauge(
    "upwell_verdict",
    "0 or 1",
    "1 for the state that the collection is in, 0 for the other three.",
    *("collection", "state"),
)
WATERMARK = _gauge(
    "upwell_watermark_timestamp_seconds",
    "seconds",
    "Every commit up to it is searchable; seconds since the epoch by the source's clock.",
    "collection",
)
STALENESS = _gauge(
    "upwell_staleness_seconds", "seconds", "Seconds since the watermark, by the source's clock.", "collection"
)
THRESHOLD = _gauge(
    "upwell_threshold_seconds", "seconds", "Seconds of staleness that the SLO allows.", "collection"
)
PENDING = _gauge(
    "upwell_pending", "texts", "Texts that are not searchable yet, by lane.", "collection", "lane"
)
OLDEST_PENDING = _gauge(
    "upwell_oldest_pending_seconds",
    "seconds",
    "Seconds since the commit of the oldest change in the live lane that is not searchable yet.",
    "collection",
)
ETA = _gauge(
    "upwell_eta_seconds",
    "seconds",
    "Seconds until what is pending is embedded, at the pace of now.",
    "collection",
)
DEAD_LETTERS = _gauge("upwell_dead_letters", "records", "Open dead letters: records set aside.", "collection")
CONSUMER_LAG = _gauge(
    "upwell_consumer_lag", "records", "Records in Kafka that are not taken in.", "collection"
)
VIOLATIONS = _counter(
    "upwell_watermark_violations_total",
    "changes",
    "Changes taken in that were committed before the watermark published by then; none may ever be.",
    "collection",
    of="monitor",
)
BLOCKED = _gauge(
    "upwell_blocked",
    "0 or 1",
    "1 while the collection waits until somebody mends what is wrong.",
    "collection",
)
LOAD_COMPLETE = _gauge(
    "upwell_load_complete", "0 or 1", "1 once the table's first load or rebuild is complete.", "collection"
)
LOAD_SEARCHABLE = _gauge(
    "upwell_load_searchable_ratio",
    "ratio",
    "Part of the rows of a load that are searchable, 0 to 1.",
    "collection",
)

# SLO

SLI = _gauge(
    "upwell_sli_ratio",
    "ratio",
    "Good part, 0 to 1, of the SLO's window: of changes (events), of minutes (time).",
    *("collection", "sli"),
)
OBJECTIVE = _gauge(
    "upwell_objective_ratio", "ratio", "The part, 0 to 1, that has to be good.", "collection", "sli"
)
BUDGET = _gauge(
    "upwell_error_budget_remaining_ratio",
    "ratio",
    "Part of the error budget that is left: 1 all, 0 none, negative overdrawn.",
    *("collection", "sli"),
)
BURN_RATE = _gauge(
    "upwell_burn_rate",
    "times",
    "How many times as fast as the objective allows the budget was used up in the window.",
    *("collection", "sli", "window"),
)
REPORT_DELAY = _gauge(
    "upwell_report_delay_seconds",
    "seconds",
    "Seconds from commit to searchable over the report's window, within 1 %; quantile 1 is the maximum.",
    *("collection", "stage", "quantile"),
)

# The line

NEIGHBOUR_UP = _gauge(
    "upwell_neighbour_up",
    "0 or 1",
    "1 if source, Kafka, Connect, registry or sink answers the monitor.",
    "neighbour",
)
NEIGHBOUR_AGE = _gauge(
    "upwell_neighbour_age_seconds", "seconds", "Seconds since the neighbour's answer was due.", "neighbour"
)
CONNECTOR_UP = _gauge("upwell_connector_up", "0 or 1", "1 if the connector and its task are RUNNING.")
CONNECTOR_SINCE = _gauge(
    "upwell_connector_state_seconds", "seconds", "Seconds that the connector has been in its state."
)
CONNECTOR_RESTARTS = _counter(
    "upwell_connector_restarts_total", "restarts", "Restarts of the connector by this monitor.", of="monitor"
)
SLOT_ACTIVE = _gauge("upwell_slot_active", "0 or 1", "1 while somebody reads the replication slot.")
SLOT_RETAINED = _gauge(
    "upwell_slot_retained_bytes", "bytes", "Bytes of write-ahead log that the source keeps for the slot."
)
SLOT_SAFE = _gauge(
    "upwell_slot_safe_bytes",
    "bytes",
    "Bytes that may still be written before the slot is lost; none without max_slot_wal_keep_size.",
)
GAP = _gauge("upwell_gap", "0 or 1", "1 if changes are lost, until `upwell connector rebuild`.")
ROUND_PERIOD = _gauge("upwell_round_period_seconds", "seconds", "Seconds from one round's begin to the next.")
ROUND_AGE = _gauge(
    "upwell_round_age_seconds", "seconds", "Seconds since the oldest round began that is not done."
)
CANARY_OK = _gauge(
    "upwell_canary_ok", "0 or 1", "1 if a search finds the canary with the vector it has to have."
)
CANARY_DELAY = _gauge(
    "upwell_canary_delay_seconds", "seconds", "Seconds from the last found canary's commit to searchable."
)
CANARY_AGE = _gauge("upwell_canary_age_seconds", "seconds", "Seconds since the last found canary's commit.")
CANARY_COSINE = _gauge(
    "upwell_canary_cosine_ratio", "ratio", "Cosine of the canary to the reference of its generation."
)
SOURCE_AHEAD = _gauge(
    "upwell_source_ahead_seconds", "seconds", "Seconds by which the source's clock is ahead of the sink's."
)
WORKERS_ALIVE = _gauge("upwell_workers_alive", "workers", "Workers that were heard of lately.")
WORKER_SEEN = _gauge(
    "upwell_worker_seen_seconds", "seconds", "Seconds since the worker was heard of.", "slot"
)
WORKER_PROBLEMS = _gauge(
    "upwell_worker_problems", "problems", "Problems that the worker says it has.", "slot"
)

# Workers

OUTCOMES = _counter(
    "upwell_outcomes_total",
    "records",
    "Records taken in from Kafka, each with its one outcome.",
    *("collection", "outcome"),
)
PROPAGATION = Spec(
    "upwell_propagation_delay_seconds",
    "histogram",
    "seconds",
    "worker",
    "Seconds of streamed changes by stage; total is commit to searchable.",
    ("collection", "stage"),
    DELAY_BUCKETS,
)
CLOCK_NEGATIVE = _counter(
    "upwell_negative_delays_total",
    "delays",
    "Delays that two clocks made negative, counted as 0.",
    "collection",
)
DOCUMENTS = _counter(
    "upwell_documents_total",
    "documents",
    "Documents embedded, by what became of them.",
    *("collection", "result"),
)
BACKFILLED = _counter(
    "upwell_backfilled_total", "documents", "Documents of first loads that became searchable.", "collection"
)
EMBED_BUSY = _counter(
    "upwell_embed_busy_seconds_total",
    "seconds",
    "Seconds that the worker has spent on embedding, from claim to written.",
    "collection",
)
CHUNKS = _counter(
    "upwell_chunks_total",
    "chunks",
    "Chunks of embedded documents: encoded by the model, kept, or copied from the same text elsewhere.",
    *("collection", "result"),
)
ENCODE = Spec(
    "upwell_encode_seconds",
    "histogram",
    "seconds",
    "worker",
    "Seconds of one call of the model, for all texts of a batch.",
    ("collection",),
    ENCODE_BUCKETS,
)
RETRIES = _counter(
    "upwell_retries_total", "attempts", "Attempts that failed because a neighbour was away.", "stage"
)
WORKER_READY = _gauge(
    "upwell_worker_ready", "0 or 1", "1 if the worker takes changes in, as /readyz.", of="worker"
)
WORKER_LIVE = _gauge(
    "upwell_worker_live", "0 or 1", "1 unless the worker is stuck, as /healthz.", of="worker"
)
WORKER_BLOCKED = _gauge(
    "upwell_worker_blocked",
    "0 or 1",
    "1 while this worker waits for the collection to be mended.",
    "collection",
    of="worker",
)
WORKER_STARTED = _gauge(
    "upwell_worker_start_timestamp_seconds",
    "seconds",
    "When the worker started, in seconds since the epoch by its own clock.",
    of="worker",
)

ALL: Final[tuple[Spec, ...]] = tuple(each for each in list(globals().values()) if isinstance(each, Spec))
BY_NAME: Final = {name: each for each in ALL for name in each.exposed}


def build_info(version: str) -> Metric:
    """Which upwell this is."""
    family = BUILD.gauge()
    family.add_metric([version], 1)
    return family


def known(name: str) -> Spec | None:
    """The metric that a query's selector names."""
    return BY_NAME.get(name)


def readme_table() -> Iterator[str]:
    """The README's rows, in the order of this file."""
    yield "| metric | type | labels | of | meaning |"
    yield "|---|---|---|---|---|"
    for each in ALL:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        yield f"| `{each.name}` | {each.kind} | {labels} | {each.of} | {each.help} |"
