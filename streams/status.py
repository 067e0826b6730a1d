"""What works, what does not, and what to do next.

Each neighbour is asked by itself, so one that is away hides no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, TypeVar

from connectors.debezium.connect import ConnectorStatus
from connectors.debezium.naming import Naming
from connectors.postgres.capture_state import INCOMPLETE, SILENT_SECONDS, CaptureState, connect_sink
from connectors.postgres.forecast import read_queue
from connectors.postgres.read import read_blocked, read_report
from connectors.postgres.source import connect_source, first
from connectors.postgres.upkeep import read_unindexed
from schemas.errors import UpwellError
from schemas.freshness import State
from schemas.readings import BlockedReading
from streams import neighbours
from streams.capture import opened
from streams.freshness.forecast import Forecast, forecast_of
from streams.freshness.report import Report, build_report
from streams.gaps import lineage_gap
from streams.loads import records_ahead
from streams.settings import Settings

T = TypeVar("T")

#: Rates and delays are those of so long; counts are kept by the minute.
WINDOW: Final = timedelta(minutes=5)
#: Write-ahead log that the source keeps for the connector, before it is worth a word.
MUCH_WAL_BYTES: Final = 1024**3
#: A threshold that will be missed later than this is not wrong yet.
SOON_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Slot:
    """The replication slot; `behind_bytes` of write-ahead log are not confirmed, None if none is yet."""

    name: str
    active: bool
    wal_status: str
    behind_bytes: int | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen. A neighbour that did not answer is None, and its error is in `errors` under its name.

    `slot` is also None where the source has none. `ahead`: records in Kafka and not taken in, by collection. `gap`: why
    changes are lost, "" if none are. `other_settings`: of the connector, that are not ours. `forecasts`: by collection.
    `unindexed`: collections without a valid HNSW index.
    """

    report: Report | None
    lineage: int | None
    connector: ConnectorStatus | None
    slot: Slot | None
    ahead: Mapping[str, int] | None
    gap: str = ""
    other_settings: Sequence[str] = ()
    blocked: Sequence[BlockedReading] = ()
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    unindexed: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something is wrong, in one line, and what to do."""

    problem: str
    next_step: str


def look(settings: Settings) -> Facts:
    """Ask every neighbour. Writes nothing and raises nothing that a neighbour is to blame for."""
    errors: dict[str, str] = {}

    def ask(name: str, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except UpwellError as error:
            errors[name] = str(error)
            return None

    report = ask("sink", lambda: _report(settings))
    blocked, forecasts = ask("sink", lambda: _waiting(settings)) or ([], {})
    unindexed = ask("sink", lambda: _unindexed(settings)) or ()
    lineage = ask("sink", lambda: _lineage(settings)) if report is not None else None
    naming = None if lineage is None else Naming(settings.name, lineage)
    slot = ask("source", lambda: _slot(settings, naming))
    connector = None
    if naming is not None:
        connector = ask("connect", lambda: neighbours.connect(settings).status(naming.connector))
    ask("registry", neighbours.blocking_registry(settings).answers)
    ahead = ask("kafka", lambda: _ahead(settings, naming)) if naming is not None else None
    gap = ask("connect", lambda: _gap(settings, naming, report)) if naming is not None else None
    others: Sequence[str] = ()
    if connector is not None and not errors:
        others = ask("connect", lambda: _other_settings(settings)) or ()
    return Facts(
        report, lineage, connector, slot, ahead, gap or "", others, blocked, forecasts, errors, unindexed
    )


def _other_settings(settings: Settings) -> Sequence[str]:
    with opened(settings, lambda line: None) as capture:
        return capture.other_settings()


def _report(settings: Settings) -> Report:
    with connect_sink(settings.sink.dsn) as connection:
        return build_report(read_report(connection, WINDOW))


def _waiting(settings: Settings) -> tuple[Sequence[BlockedReading], Mapping[str, Forecast]]:
    with connect_sink(settings.sink.dsn) as connection:
        forecasts = forecast_of(read_queue(connection), backfill_share=settings.worker.backfill_share)
        return read_blocked(connection), forecasts


def _unindexed(settings: Settings) -> Sequence[str]:
    with connect_sink(settings.sink.dsn) as connection:
        return read_unindexed(connection)


def _lineage(settings: Settings) -> int | None:
    with CaptureState.open(settings.sink.dsn) as state:
        found = state.lineage()
    return None if found is None else found[0]


def _slot(settings: Settings, naming: Naming | None) -> Slot | None:
    with connect_source(settings.source.dsn) as connection:
        row = first(connection, "slot_state", {"slot": naming.slot}) if naming is not None else None
    return (
        None
        if row is None
        else Slot(row["name"], row["active"], row["wal_status"] or "", row["behind_bytes"])
    )


def _gap(settings: Settings, naming: Naming, report: Report | None) -> str:
    loads = [] if report is None else [found.load for found in report.collections.values()]
    begun = any(load.state != INCOMPLETE for load in loads)
    with CaptureState.open(settings.sink.dsn) as state, connect_source(settings.source.dsn) as connection:
        return lineage_gap(connection, neighbours.connect(settings), state, naming, begun=begun)


def _ahead(settings: Settings, naming: Naming | None) -> dict[str, int]:
    if naming is None:
        return {}
    kafka = neighbours.kafka(settings, timeout=5.0)
    with CaptureState.open(settings.sink.dsn) as state:
        return {
            name: records_ahead(state, kafka, naming.topic(spec.table))
            for name, spec in settings.collections.items()
        }


_AWAY: Final = {
    "sink": "start it, or mend UPWELL_SINK_DSN; nothing is lost meanwhile",
    "source": "start it, or mend UPWELL_SOURCE_DSN; Debezium tries again by itself",
    "connect": "start Kafka Connect, or mend UPWELL_CONNECT_URL; what is in Kafka is still taken in",
    "registry": "start it, or mend UPWELL_REGISTRY_URL; workers wait",
    "kafka": "start it, or mend UPWELL_KAFKA_BOOTSTRAP_SERVERS; workers wait",
}


def findings(facts: Facts, settings: Settings) -> list[Finding]:
    """What is wrong, what is nearest to the source first."""
    away = [Finding(facts.errors[name], step) for name, step in _AWAY.items() if name in facts.errors]
    found = [*away, *_capture(facts), *_workers(facts), *_collections(facts, settings)]
    return found or list(_stale(facts, settings))


def _stale(facts: Facts, settings: Settings) -> Iterator[Finding]:
    """What the monitor says, where nothing that is seen from here explains it."""
    for name, found in (facts.report.collections if facts.report is not None else {}).items():
        if name in settings.collections and found.verdict.state is State.STALE:
            reason, _, at = found.verdict.reason.partition("; see ")
            yield Finding(f"{name} is STALE: {reason}", f"see {at or 'RUNBOOK'}")


def _capture(facts: Facts) -> Iterator[Finding]:
    if facts.report is not None and facts.lineage is None:
        yield Finding("nothing is captured yet", "run `upwell connector apply`")
        return
    connector, slot = facts.connector, facts.slot
    if facts.gap:
        yield Finding(f"changes are lost: {facts.gap}", "run `upwell connector rebuild`")
        return
    if connector is not None and connector.failed:
        yield Finding(
            f"connector {connector.name} FAILED: {connector.cause}",
            "mend the cause, then run `upwell connector restart`",
        )
    elif connector is not None and not connector.running:
        state = connector.connector if connector.connector != "RUNNING" else f"task {connector.task}"
        yield Finding(f"connector {connector.name}: {state}", "run `upwell connector apply`")
    if connector is not None and facts.other_settings:
        yield Finding(
            f"connector {connector.name} runs with other settings than ours: {', '.join(facts.other_settings)}",
            "run `upwell connector apply`, which gives it ours",
        )
    if slot is not None and (slot.behind_bytes or 0) > MUCH_WAL_BYTES:
        kept = (slot.behind_bytes or 0) / 1024**3
        yield Finding(
            f"slot {slot.name} holds back {kept:.1f} GiB of write-ahead log",
            "see that the connector runs, and that no transaction is open for long at the source",
        )


def _workers(facts: Facts) -> Iterator[Finding]:
    if facts.report is None or facts.lineage is None:
        return
    if not any(worker.seen_seconds < SILENT_SECONDS for worker in facts.report.workers):
        yield Finding("no worker runs", "run `upwell worker --processes 2`, or `make up` on one machine")
    for worker in facts.report.workers:
        for problem in worker.problems if worker.seen_seconds < SILENT_SECONDS else ():
            yield Finding(
                f"worker {worker.slot}: {problem}",
                "give the worker its model, it tries again by itself; or run `upwell generation drop`",
            )


def _blocked(facts: Facts, name: str) -> Iterator[Finding]:
    for each in facts.blocked:
        if each.collection == name:
            yield Finding(
                f"{name} is blocked for {each.seconds:.0f} s: {each.reason}",
                "mend what it names (README, When something fails), then it goes on by itself; the others do meanwhile",
            )


def _collections(facts: Facts, settings: Settings) -> Iterator[Finding]:
    for name, found in (facts.report.collections if facts.report is not None else {}).items():
        if name not in settings.collections:
            continue
        threshold = settings.collections[name].slo.threshold_seconds
        yield from _blocked(facts, name)
        if found.load.state == "incomplete" and facts.lineage is not None:
            yield Finding(f"{name}: its table is not loaded", "run `upwell connector apply`")
        if name in facts.unindexed:
            yield Finding(
                f"{name}: it has no HNSW index, every search reads the whole table",
                f"run `upwell maintain {name}`",
            )
        forecast = facts.forecasts.get(name)
        if (found.oldest_pending_seconds or 0.0) > threshold:
            yield Finding(
                f"{name}: a change waits for {found.oldest_pending_seconds:.0f} s, the threshold is {threshold:.0f} s",
                "see the workers' log; if they are busy, run more of them"
                if forecast is None
                else f"{forecast.sentence}; see the workers' log",
            )
        elif (
            forecast is not None and 0 < (forecast.missed_in_seconds or 0.0) < SOON_SECONDS and forecast.known
        ):
            problem, _, step = forecast.sentence.rpartition("; ")
            yield Finding(problem, step)
        if found.dead_letters:
            yield Finding(
                f"{name}: {found.dead_letters} dead letters",
                f"run `upwell dead-letters list {name}`, mend what it names, then `upwell dead-letters replay`",
            )
