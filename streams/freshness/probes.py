"""What the monitor asks of each neighbour, each in a thread of its own: one that hangs holds up nobody else.

Each probe keeps what it has seen in `Sights`; the evaluation reads it there and waits for no neighbour but the sink.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import structlog

from connectors.debezium.canary import CanaryTopic
from connectors.debezium.connect import Connect
from connectors.debezium.naming import Naming
from connectors.kafka import Kafka
from connectors.postgres.capture_state import CaptureState
from connectors.postgres.capture_state import open_sink as sink_connection
from connectors.postgres.source import Connection, connect_source, first, open_source, source_errors
from connectors.postgres.translate import sink_errors
from connectors.registry import BlockingRegistry
from schemas.errors import UpwellError
from schemas.freshness import CANARY_TABLE
from streams import neighbours
from streams.capture import lost_topic
from streams.freshness.rounds import Ends, Rounds
from streams.freshness.supervision import Restarts
from streams.freshness.verdict import Connector, Neighbour
from streams.gaps import find_gap
from streams.loads import read_ends
from streams.settings import Settings

log = structlog.get_logger()

#: Its connections' application name.
MONITOR: Final = "upwell monitor"
#: Of one call; a neighbour that takes longer is as good as away.
CALL_SECONDS: Final = 5.0
KAFKA_SECONDS: Final = 0.25
#: How old the end offsets may be that "changes wait in Kafka" is said of.
ENDS_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 1.0
SLOW_SECONDS: Final = 10.0
EVENTS: Final = 50


@dataclass(slots=True)
class Sights:
    """What was seen last. Whoever reads or writes holds `lock`; times are `time.monotonic()`.

    `naming`: of the newest lineage, None before the first. `source_clock`: the source's clock at a moment of ours.
    `canary_read`: next offset and last number of the canary's topic. `topics`: whose end offsets are wanted.
    `begun`: whether a table was read in this lineage, so that a slot must exist.
    """

    rounds: Rounds = field(default_factory=Rounds)
    naming: Naming | None = None
    source_clock: tuple[datetime, float] | None = None
    slot: Mapping[str, Any] | None = None
    connector: Connector | None = None
    restarts: int = 0
    gap: str = ""
    missing: str = ""
    canary_read: tuple[int, int] | None = None
    topics: tuple[str, ...] = ()
    ends: Ends | None = None
    ends_at: float = 0.0
    begun: bool = False
    events: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=EVENTS))
    lock: threading.RLock = field(default_factory=threading.RLock)

    def tell(self, text: str) -> None:
        """Something that the monitor did or found, for the page and the log."""
        with self.lock:
            self.events.append({"at": datetime.now(UTC).isoformat(), "text": text})
        log.info(text)

    def now_at_source(self, now: float) -> datetime | None:
        """The source's clock at a moment of ours."""
        if self.source_clock is None:
            return None
        at, then = self.source_clock
        return at + timedelta(seconds=now - then)


class Probe:
    """Calls `look` again and again until told to stop; after an error `reset` first, so that it begins anew."""

    def __init__(
        self,
        name: str,
        look: Callable[[], None],
        every_seconds: float,
        reset: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._look, self._reset, self._every = look, reset, every_seconds
        self._answered, self._error = time.monotonic(), ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"probe {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end; who hangs in a call is left behind."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def neighbour(self, now: float) -> Neighbour:
        """Silence counts from when the next answer was due."""
        return Neighbour(max(0.0, now - self._answered - self._every), self._error)

    def _run(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                self._look()
                self._answered, self._error = time.monotonic(), ""
            except UpwellError as error:
                self._failed(str(error))
            except Exception as error:  # a probe must outlive whatever a neighbour does
                log.exception("probe", probe=self.name)
                self._failed(type(error).__name__)
            self._stop.wait(max(0.02, self._every - (time.monotonic() - begun)))
        with contextlib.suppress(Exception):
            self._reset()

    def _failed(self, error: str) -> None:
        if error != self._error:
            log.warning("probe", probe=self.name, error=error)
        self._error = error
        with contextlib.suppress(Exception):
            self._reset()


class SourceProbe:
    """Begins a round: commits a canary and reads the source's clock."""

    def __init__(self, settings: Settings, sights: Sights) -> None:
        self._dsn, self._sights = settings.source.dsn, sights
        self._connection: Connection | None = None

    def look(self) -> None:
        naming = self._sights.naming
        connection = self._connected()
        if naming is None:
            first(connection, "wal_position")
            return
        begun = time.monotonic()
        row = first(connection, "beat")
        ended = time.monotonic()
        slot = first(connection, "slot_state", {"slot": naming.slot})
        assert row is not None
        sights = self._sights
        with sights.lock:
            sights.source_clock = (row["now"], (begun + ended) / 2)
            sights.slot = slot
            if sights.naming == naming:
                sights.rounds.begin(row["number"], row["at"], begun)

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = open_source(self._dsn, MONITOR)
            with source_errors():
                self._connection.execute("SET statement_timeout = '5s'")
                self._connection.execute("SET lock_timeout = '4s'")
        return self._connection

    def reset(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


class CanaryProbe:
    """Reads the canary's topic: how far rounds are, and whether a number is missing."""

    def __init__(self, settings: Settings, sights: Sights) -> None:
        self._settings, self._sights = settings, sights
        self._topic: CanaryTopic | None = None
        self._naming: Naming | None = None

    def look(self) -> None:
        sights = self._sights
        with sights.lock:
            naming, read = sights.naming, sights.canary_read
        if naming is None:
            return
        if self._topic is None or naming != self._naming:
            self.reset()
            topic, offset = naming.topic(CANARY_TABLE), 0 if read is None else read[0]
            self._topic = neighbours.canary(self._settings, topic, offset)
            self._naming = naming
        for event in self._topic.poll(0.5):
            with sights.lock:
                if sights.naming != naming:
                    return
                last = sights.canary_read
                if last is not None and event.offset == last[0] and event.number > last[1] + 1:
                    place = f"{naming.topic(CANARY_TABLE)} before offset {event.offset}"
                    sights.missing = f"canary {last[1] + 1} is missing in {place}"
                number = event.number if last is None else max(event.number, last[1])
                sights.canary_read = (event.offset + 1, number)
                if event.lsn is not None:
                    sights.rounds.seen(event.number, event.lsn)

    def reset(self) -> None:
        if self._topic is not None:
            self._topic.close()
        self._topic = None


class ConnectProbe:
    """State of the connector and its stored position; restarts what has FAILED."""

    def __init__(self, settings: Settings, sights: Sights) -> None:
        self._connect: Connect = neighbours.connect(settings, timeout=(CALL_SECONDS, CALL_SECONDS))
        self._sights = sights
        self._restarts = Restarts(settings.monitor.restart_seconds)

    def look(self) -> None:
        sights = self._sights
        naming = sights.naming
        if naming is None:
            self._connect.version()
            return
        status = self._connect.status(naming.connector)
        now = time.monotonic()
        state = status.connector if status.connector != "RUNNING" else status.task
        seconds = self._restarts.see(state, now)
        stored = self._connect.offsets(naming.connector, naming.topic_prefix)
        with sights.lock:
            sights.connector = Connector(state, seconds, status.cause)
            if sights.naming == naming and stored.get("lsn_commit") is not None:
                sights.rounds.stored(int(stored["lsn_commit"]))
            lost = sights.gap
        if not lost and self._restarts.due(now):
            sights.tell(f"connector {naming.connector} is restarted: it FAILED, {status.cause or 'no trace'}")
            self._connect.restart(naming.connector)
            sights.restarts = self._restarts.count


class KafkaProbe:
    """End offsets and log starts: for rounds that have settled, and now and then for what waits in Kafka."""

    def __init__(self, settings: Settings, sights: Sights) -> None:
        self._kafka: Kafka = neighbours.kafka(settings, timeout=CALL_SECONDS)
        self._sights = sights

    def look(self) -> None:
        sights = self._sights
        with sights.lock:
            settled, topics = sights.rounds.unread(), sights.topics
            if not topics or (not settled and time.monotonic() - sights.ends_at < ENDS_SECONDS):
                return
        ends = read_ends(self._kafka, topics)
        with sights.lock:
            for each in settled:
                each.ends = ends
            sights.ends, sights.ends_at = ends, time.monotonic()


class GapProbe:
    """Whether the connector's place in the source's log is lost, or a topic is no longer the one that was created."""

    def __init__(self, settings: Settings, sights: Sights) -> None:
        self._settings, self._sights = settings, sights
        self._kafka = neighbours.kafka(settings, timeout=CALL_SECONDS)
        self._connect = neighbours.connect(settings, timeout=(CALL_SECONDS, CALL_SECONDS))

    def look(self) -> None:
        with self._sights.lock:
            naming, begun = self._sights.naming, self._sights.begun
        if naming is None:
            return
        with connect_source(self._settings.source.dsn) as source:
            source.execute("SET statement_timeout = '5s'")
            gap = find_gap(source, self._connect, naming, begun=begun)
        if not gap:
            with CaptureState.open(self._settings.sink.dsn) as state:
                gap = lost_topic(state, self._kafka, naming.lineage)
        with self._sights.lock:
            if self._sights.naming == naming:
                if gap and gap != self._sights.gap:
                    self._sights.tell(f"changes are lost: {gap}")
                self._sights.gap = gap


def probes(settings: Settings, sights: Sights) -> dict[str, Probe]:
    """All but the sink's, by name, not started."""
    source, canary = SourceProbe(settings, sights), CanaryProbe(settings, sights)
    registry: BlockingRegistry = neighbours.blocking_registry(settings, timeout_seconds=CALL_SECONDS)
    made = (
        Probe("source", source.look, settings.monitor.round_seconds, source.reset),
        Probe("canary", canary.look, 0.05, canary.reset),
        Probe("connect", ConnectProbe(settings, sights).look, CONNECT_SECONDS),
        Probe("kafka", KafkaProbe(settings, sights).look, KAFKA_SECONDS),
        Probe("gap", GapProbe(settings, sights).look, SLOW_SECONDS),
        Probe("registry", registry.answers, SLOW_SECONDS),
    )
    return {each.name: each for each in made}


def open_sink(dsn: str) -> psycopg.Connection[Any]:
    """The monitor's own connection; a statement that hangs is given up. Raises as `capture_state.open_sink`."""
    connection = sink_connection(dsn, MONITOR)
    with sink_errors():
        connection.execute("SET statement_timeout = '10s'")
        connection.execute("SET lock_timeout = '5s'")
    return connection
