"""Loads by incremental snapshot, from `incomplete` to `complete`: the first of a table, and those after a rebuild.

The state is written before the signal is sent, and a signal is sent once per id: whoever is killed in
between is continued, not repeated. A scan counts only if its own table's completion says SUCCEEDED or
EMPTY (H24). A table that is truncated meanwhile is read again once its scan has ended (H8). How a scan becomes
complete is in `streams/completion.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from connectors.debezium.connect import Connect
from connectors.debezium.naming import Naming
from connectors.debezium.notifications import Notification, Notifications
from connectors.debezium.snapshot import LOAD, new_signal_id, request
from connectors.kafka import Kafka
from connectors.postgres.capture_state import INCOMPLETE, LOADING, CaptureState, Load
from connectors.postgres.source import Connection, first
from connectors.postgres.source_schema import unsettled
from schemas.change import TopicPartition
from schemas.errors import ConnectUnavailable, SettingsError, SourceUnavailable
from streams.freshness.rounds import Ends

POLL_SECONDS: Final = 0.2
#: How often the connector is looked at while a scan is followed.
STATUS_SECONDS: Final = 3.0
TELL_SECONDS: Final = 1.0
#: Silence of a scan before the connector is restarted; doubled each time, because one chunk may take long.
STALL_SECONDS = 60.0
STALL_LIMIT_SECONDS: Final = 3600.0
#: A table whose scan fails is asked for again this often.
ATTEMPTS: Final = 5


@dataclass(slots=True)
class Loading:
    """The loads of one deployment. `tables`: `schema.table` by collection.

    `read_notifications` opens a topic at an offset.
    """

    naming: Naming
    tables: Mapping[str, str]
    source: Connection
    state: CaptureState
    kafka: Kafka
    connect: Connect
    read_notifications: Callable[[str, int], Notifications]
    chunk_rows: int
    progress: Callable[[str], None]
    attempts: dict[str, int] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        """Request what is incomplete, go on with what is loading, return when every scan has succeeded."""
        self._check_known()
        self._request_incomplete()
        self._send_again()
        if not self._open():
            return
        self.follow()

    def _request_incomplete(self) -> None:
        """What is to be read and of which no scan is under way."""
        self.request(
            load.name for load in self._open().values() if load.state == INCOMPLETE and not load.spoilt_scan
        )

    def _loads(self) -> dict[str, Load]:
        return self.state.loads(list(self.tables))

    def _open(self) -> dict[str, Load]:
        """Loads whose scan has not succeeded yet."""
        return {load.name: load for load in self._loads().values() if not load.scanned}

    def _check_known(self) -> None:
        unknown = sorted(set(self.tables) - set(self._loads()))
        if unknown:
            raise SettingsError(f"the sink does not know collection {unknown[0]}: run `upwell migrate` first")

    def request(self, names: Iterable[str]) -> None:
        """State first, then one signal for all: a signal whose state is not stored would be followed by
        nobody.
        """
        wanted = sorted(names)
        if not wanted:
            return
        self.wait_settled([self.tables[name] for name in wanted])
        self._wait_re_read(wanted)
        signal = new_signal_id(LOAD)
        topic = self.naming.notifications_topic
        with self.state.signalling():
            start = self.kafka.end_offsets([topic]).get(TopicPartition(topic, 0), 0)
            for name in wanted:
                detail = {
                    "signal": signal,
                    "from": start,
                    "asked_lsn": self._lsn(),
                    "starts": self._ends(name),
                }
                self.state.set_load(name, LOADING, detail)
            request(self.source, signal, [self.tables[name] for name in wanted])
        self.progress(f"load asked for: {', '.join(wanted)}")

    def _send_again(self) -> None:
        """Signals whose sender was killed between the state and the signal; those already sent are left
        alone.
        """
        signals: dict[str, list[str]] = {}
        for load in (each for each in self._open().values() if each.state == LOADING):
            signals.setdefault(str(load.detail["signal"]), []).append(self.tables[load.name])
        for signal, tables in signals.items():
            self.wait_settled(tables)
            request(self.source, signal, tables)

    def wait_settled(self, tables: list[str]) -> None:
        """Wait until every transaction older than the tables' addition to the publication has ended (H25)."""
        told = 0.0
        while waiting := unsettled(self.source, self.naming.name, tables):
            if time.monotonic() - told > 5:
                told = time.monotonic()
                self.progress(f"{waiting[0]} waits for an older transaction{self._oldest()}")
            time.sleep(POLL_SECONDS)

    def _wait_re_read(self, names: list[str]) -> None:
        """Debezium gives what it has queued the newest signal's id, so the end of the re-read of single rows would
        be taken for that of the whole table.
        """
        told = False
        while waiting := self.state.re_reading(names):
            if not told:
                self.progress(f"{waiting[0]} waits until single rows of it are read again")
                told = True
            time.sleep(POLL_SECONDS)

    def _oldest(self) -> str:
        row = first(self.source, "oldest_transaction")
        return f": pid {row['pid']} {row['application']}, open for {row['age']}" if row else ""

    def follow(self) -> None:
        """Read the notifications until no scan is open."""
        start = min(int(load.detail.get("from", 0)) for load in self._open().values())
        reader = self.read_notifications(self.naming.notifications_topic, start)
        looked = heard = time.monotonic()
        stalls = 0
        try:
            while self._open():
                self._request_incomplete()
                for notification in reader.poll(POLL_SECONDS):
                    heard, stalls = time.monotonic(), 0
                    self.take(notification)
                now = time.monotonic()
                if now - looked > STATUS_SECONDS:
                    looked = now
                    self._check_connector()
                if now - heard > min(STALL_SECONDS * 2**stalls, STALL_LIMIT_SECONDS):
                    self._wake(stalls)
                    heard, stalls = time.monotonic(), stalls + 1
        finally:
            reader.close()

    def _check_connector(self) -> None:
        status = self.connect.status(self.naming.connector)
        if status.failed:
            advice = "run `upwell connector apply` again"
            raise ConnectUnavailable(f"connector {status.name} FAILED: {status.cause}; {advice}")

    def _wake(self, stalls: int) -> None:
        """Debezium forgets its queue when its first look at a table fails; a restarted task takes it up again.

        If that does not help, the signal itself is gone, and a new one is sent.
        """
        names = sorted(self._open())
        self.progress(
            f"nothing heard of {', '.join(names)}: {'asked for again' if stalls % 2 else 'task restarted'}"
        )
        if stalls % 2:
            self.request(names)
        else:
            self.connect.restart(self.naming.connector, only_failed=False)

    def take(self, notification: Notification) -> None:
        """What one notification means for the load of its table."""
        by_table = {self.tables[name]: load for name, load in self._open().items()}
        load = by_table.get(notification.table)
        if load is None or "from" not in load.detail or not _of_a_load(notification):
            return
        if notification.offset < int(load.detail["from"]):
            return
        if notification.kind == "IN_PROGRESS":
            self._tell(load.name, notification)
        elif notification.ended and load.spoilt_scan:
            self.state.set_load(load.name, INCOMPLETE, {"reason": "truncated"})
            self.progress(f"{load.name} was truncated while it was being read: it is read again")
        elif notification.succeeded:
            self._scanned(load, notification)
        elif notification.ended:
            self._failed(load, notification)

    def _tell(self, name: str, notification: Notification) -> None:
        """A line a second; the total is the planner's estimate, so it is shown only while it is not absurd."""
        if time.monotonic() - self.told.get(name, 0.0) < TELL_SECONDS or notification.chunk is None:
            return
        self.told[name] = time.monotonic()
        rows, total = notification.chunk * self.chunk_rows, notification.total_rows or 0
        self.progress(f"{name} {rows} rows{f' of about {total}' if total > rows else ''} ...")

    def _scanned(self, load: Load, notification: Notification) -> None:
        """The end offsets are read after the scan's end, so its last row is below them."""
        rows = notification.scanned_rows or 0
        detail = {"rows": rows, "scanned_lsn": self._lsn(), "ends": self._ends(load.name)}
        self.state.set_load(load.name, LOADING, {**load.detail, **detail})
        self.progress(f"{load.name} {rows} rows read")

    def _ends(self, name: str) -> dict[str, int]:
        return ends_of(self.kafka, self.naming.topic(self.tables[name]))

    def _lsn(self) -> int:
        row = first(self.source, "wal_position")
        return int(row["lsn"]) if row else 0

    def _failed(self, load: Load, notification: Notification) -> None:
        self.attempts[load.name] = self.attempts.get(load.name, 0) + 1
        self.state.set_load(load.name, INCOMPLETE, {"last_status": notification.status})
        if self.attempts[load.name] >= ATTEMPTS:
            raise SourceUnavailable(
                f"{load.name}: its scan ended with {notification.status}, {ATTEMPTS} times"
            )
        self.progress(f"{load.name}: its scan ended with {notification.status}, asked for again")
        self.request([load.name])


def _of_a_load(notification: Notification) -> bool:
    return notification.signal.startswith(f"{LOAD}-")


def ends_of(kafka: Kafka, topic: str) -> dict[str, int]:
    """End offsets of a topic by partition, as a load keeps them in the sink."""
    return {str(at.partition): end for at, end in kafka.end_offsets([topic]).items()}


def read_ends(kafka: Kafka, topics: Collection[str]) -> Ends:
    """End offsets and log starts of some topics, the ends first."""
    return Ends(kafka.end_offsets(topics), kafka.log_starts(topics))


def records_ahead(
    state: CaptureState, kafka: Kafka, topic: str, ends: Mapping[int, int] | None = None
) -> int:
    """Records of a topic below `ends` (by partition; default: all there are now) that are not taken in.

    A partition without a position counts from its log start (H36).
    """
    positions = state.positions(topic)
    wanted = ends or {at.partition: end for at, end in kafka.end_offsets([topic]).items()}
    starts = kafka.log_starts([topic]) if set(wanted) - set(positions) else {}
    at = {
        partition: positions.get(partition, starts.get(TopicPartition(topic, partition), 0))
        for partition in wanted
    }
    return sum(max(0, end - at[partition]) for partition, end in wanted.items())
