"""`connector apply`: from a spec to a running connector and loaded tables.

Every step looks first and does only what is missing, so it may be killed anywhere and run again:

    1. tables at the source can be captured, publication and deployment row are there   (upwell migrate)
    2. a lineage; its topics, created and recorded with their ids                       (sink: lineage, topic)
    3. no change was lost that the lineage should have                                  (streams/gaps.py)
    4. the connector, validated, then applied; RUNNING, and its slot exists             (Connect, source)
    5. loads: state `loading` with a signal's id, THEN the signal, then followed        (streams/loads.py)
    6. `complete` once everything scanned is taken in, swept and searchable             (streams/completion.py)
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from psycopg.conninfo import conninfo_to_dict

from connectors.debezium.config import ConnectorConfig, other_settings, without_scans
from connectors.debezium.connect import Connect, ConnectorStatus
from connectors.debezium.naming import Naming
from connectors.kafka import Kafka, TopicFacts
from connectors.postgres.capture_state import INCOMPLETE, CaptureState
from connectors.postgres.source import Connection, TableInfo, connect_source, drop_slot, first, inspect_tables
from connectors.postgres.source_schema import placeholder, unpublished
from schemas.errors import ConnectUnavailable, GapFound, LineageMismatch, SettingsError
from schemas.spec import CollectionSpec
from streams import neighbours
from streams.completion import Completion
from streams.freshness.rounds import Reflected, lost
from streams.gaps import lineage_gap
from streams.loads import Loading, read_ends
from streams.settings import Settings

Progress = Callable[[str], None]

START_SECONDS: Final = 120.0
PASS_SECONDS: Final = 600.0
POLL_SECONDS: Final = 0.2
#: A FAILED task is restarted this often before its cause is given to the caller.
RESTARTS: Final = 3
REBUILD: Final = "run `upwell connector rebuild`"


def check_collections(
    connection: Connection,
    collections: Mapping[str, CollectionSpec],
    *,
    advise: bool = False,
    server: bool = True,
) -> dict[str, TableInfo]:
    """Facts of every collection's table, by collection. Raises SettingsError naming the first thing that is wrong.

    `advise`: a missing REPLICA IDENTITY FULL is no error, because the caller prints it as advice. `server`: look at
    the server, too.
    """
    if not collections:
        raise SettingsError("the spec has no collections")
    infos = inspect_tables(connection, [spec.table for spec in collections.values()], server=server)
    for name, spec in collections.items():
        info, needed = infos[spec.table], spec.template_columns | set(spec.metadata)
        info.need(needed, f"collection {name}")
        info.need(spec.exclude, f"exclude of collection {name}", streamed=False)
        _check_key(name, spec, info)
        if not advise:
            _check_identity(spec, info, needed)
    return {name: infos[spec.table] for name, spec in collections.items()}


def _check_key(name: str, spec: CollectionSpec, info: TableInfo) -> None:
    hidden = sorted(set(spec.exclude) & {column.name for column in info.key})
    if hidden:
        raise SettingsError(f"collection {name}: {hidden[0]!r} is in the primary key and cannot be excluded")


def _check_identity(spec: CollectionSpec, info: TableInfo, needed: Collection[str]) -> None:
    unsafe = info.unsafe(needed)
    if unsafe:
        raise SettingsError(
            f"{spec.table}: updates would leave out long unchanged values of {', '.join(unsafe)}; "
            f"let its owner run ALTER TABLE {spec.table} REPLICA IDENTITY FULL"
        )


@dataclass(frozen=True, slots=True)
class Capture:
    """The capture side of one deployment, with everything it talks to."""

    settings: Settings
    naming: Naming
    source: Connection
    state: CaptureState
    kafka: Kafka
    connect: Connect
    progress: Progress

    def alone(self) -> Capture:
        """The same in the lineage that is the newest once nobody else applies, rebuilds or follows a load.

        Nobody will, until this connection to the sink ends.
        """
        told = False
        while not self.state.try_capturing():
            if not told:
                told = True
                self.progress("waits: another `connector apply` or `rebuild`, or the monitor, is at it")
            time.sleep(POLL_SECONDS)
        return replace(self, naming=lineage_of(self.state, self.settings))

    def topics(self) -> dict[str, tuple[int, str | None]]:
        """Every topic of the lineage: partitions, and the collection it feeds."""
        service: dict[str, tuple[int, str | None]] = {
            topic: (1, None) for topic in self.naming.service_topics()
        }
        count = self.settings.kafka.partitions
        fed = {
            self.naming.topic(spec.table): (count, name) for name, spec in self.settings.collections.items()
        }
        return {**service, **fed}

    def ensure_topics(self) -> None:
        """Create and record what is missing. Raises LineageMismatch for a topic that is not the recorded one."""
        wanted, recorded = self.topics(), self.state.topics(self.naming.lineage)
        missing = {topic: count for topic, (count, _) in wanted.items() if topic not in recorded}
        self._refuse_foreign(missing)
        kafka = self.settings.kafka
        created = self.kafka.create(
            missing,
            replication_factor=kafka.replication_factor,
            retention_hours=kafka.retention_hours,
            max_message_bytes=kafka.max_message_bytes,
        )
        facts = self._described(set(wanted), set(created))
        check_topics(recorded, {topic: facts.get(topic) for topic in recorded if topic in wanted})
        self.state.begin_lineage(
            self.naming.lineage,
            self.naming.topic_prefix,
            {topic: (wanted[topic][1], facts[topic]) for topic in missing},
        )
        for topic in missing:
            self.state.record_topic(self.naming.lineage, topic, wanted[topic][1], facts[topic])
        if created:
            self.progress(f"{len(created)} topics created")
        raised = self.kafka.take_messages_of(set(wanted) - set(created), kafka.max_message_bytes)
        if raised:
            self.progress(f"{len(raised)} topics take messages of {kafka.max_message_bytes} bytes now")

    def _described(self, wanted: set[str], created: set[str]) -> dict[str, TopicFacts]:
        """A topic just created may take a moment until every broker knows it."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            facts = self.kafka.describe(wanted)
            if created <= set(facts) or time.monotonic() > deadline:
                return facts
            time.sleep(POLL_SECONDS)

    def _refuse_foreign(self, found: Collection[str]) -> None:
        """Unrecorded topics that hold records belong to an earlier life of this name, and so do their
        deletes.
        """
        used = sorted(at.topic for at, end in self.kafka.end_offsets(found).items() if end > 0)
        if used:
            raise LineageMismatch(
                f"topic {used[0]} holds records of another deployment: choose another name, "
                f"or delete the topics {self.naming.topic_prefix}.*"
            )

    def lost(self, *, begun: bool) -> str:
        """What this lineage has lost, in one line, "" if nothing: at the source, in Kafka, or as a monitor has recorded
        it. `begun` as `find_gap` has it.
        """
        return (
            self.gap(begun=begun)
            or lost_topic(self.state, self.kafka, self.naming.lineage)
            or self._removed()
        )

    def _removed(self) -> str:
        """Records that Kafka has removed before they were taken in (H23)."""
        topics = [self.naming.topic(spec.table) for spec in self.settings.collections.values()]
        ends = read_ends(self.kafka, topics)
        found = (lost(ends, Reflected(topic, self.state.positions(topic))) for topic in topics)
        return next((each for each in found if each), "")

    def ensure_publication(self) -> None:
        missing = unpublished(
            self.source, self.naming.name, [s.table for s in self.settings.collections.values()]
        )
        if missing:
            raise SettingsError(f"{missing[0]} is not in the publication yet: run `upwell migrate source`")

    def ensure_connector(self, *, restart: bool = False) -> None:
        """Apply the config and wait until the connector runs and its slot exists.

        `restart` also one that runs with this config: it has read its password when it started.
        """
        config = self.config().render()
        self.connect.validate(config)
        known = self.connect.config(self.naming.connector)
        if known is not None and known != config:
            self.stop()
            if known.get("topic.prefix") != config["topic.prefix"]:
                self.connect.delete_offsets(self.naming.connector)
        if self.connect.apply(config):
            self.progress(f"connector {self.naming.connector} {'applied' if known is None else 'changed'}")
        elif restart and known is not None:
            self.connect.restart(self.naming.connector, only_failed=False)
            self.progress(f"connector {self.naming.connector} restarted: its user or password was changed")
        self.connect.resume(self.naming.connector)
        self._running()

    def pass_without_scans(self) -> None:
        """Have the connector read past what is in the log now without any scan, then give it its settings again.

        When a scan begins or goes on, Debezium takes the columns that its table has now for those of the whole log.
        With a column dropped since, the next older record does not fit, after any restart again (ADR 0017). A scan
        under way goes on afterwards. Raises ConnectUnavailable if the connector does not get there.
        """
        name, end = self.naming.connector, first(self.source, "wal_position")
        assert end is not None
        self.stop()
        self.connect.apply(without_scans(self.config().render()))
        try:
            self.connect.resume(name)
            self._running()
            deadline = time.monotonic() + PASS_SECONDS
            while (
                int(self.connect.offsets(name, self.naming.topic_prefix).get("lsn_commit") or 0) <= end["lsn"]
            ):
                if time.monotonic() > deadline:
                    raise ConnectUnavailable(f"connector {name} does not get past what it could not read")
                time.sleep(POLL_SECONDS)
        finally:
            self.ensure_connector()

    def other_settings(self) -> list[str]:
        """Settings with which the connector runs and that are not ours; none where there is no connector."""
        running = self.connect.config(self.naming.connector)
        return [] if running is None else other_settings(self.config().render(), running)

    def stop(self) -> None:
        """A task that still runs with the old table list would read a signal for a new table and drop it."""
        self.connect.stop(self.naming.connector)
        deadline = time.monotonic() + START_SECONDS
        while self.connect.status(self.naming.connector).task not in {"UNASSIGNED", "ABSENT"}:
            if time.monotonic() > deadline:
                raise ConnectUnavailable(f"connector {self.naming.connector} does not stop")
            time.sleep(POLL_SECONDS)

    def _running(self) -> None:
        deadline, restarts = time.monotonic() + START_SECONDS, 0
        while True:
            status = self.connect.status(self.naming.connector)
            if status.running and self._slot_ready():
                self.progress(f"connector {self.naming.connector} RUNNING, slot {self.naming.slot}")
                return
            if status.failed:
                if restarts == RESTARTS:
                    raise _failed(status)
                restarts += 1
                self.connect.restart(self.naming.connector)
                time.sleep(restarts)
            if time.monotonic() > deadline:
                raise ConnectUnavailable(
                    f"connector {self.naming.connector} is {status.connector}/{status.task}"
                )
            time.sleep(POLL_SECONDS)

    def _slot_ready(self) -> bool:
        slot = first(self.source, "slot", {"slot": self.naming.slot})
        return slot is not None and bool(slot["ready"])

    def gap(self, *, begun: bool) -> str:
        """What is lost in this lineage, also what can no longer be seen; `begun` as for `find_gap`."""
        return lineage_gap(self.source, self.connect, self.state, self.naming, begun=begun)

    def refuse_gap(self) -> None:
        """Raise GapFound if changes are lost: a start from here would hide it."""
        loads = self.state.loads(list(self.settings.collections)).values()
        gap = self.gap(begun=any(load.state != INCOMPLETE for load in loads))
        if gap:
            raise GapFound(f"{gap}; run `upwell connector rebuild`")

    def drop_ended_slots(self) -> None:
        """An ended lineage's slot would hold back the source's write-ahead log for ever."""
        for lineage in range(1, self.naming.lineage):
            if drop_slot(self.source, Naming(self.naming.name, lineage).slot):
                self.progress(f"slot {Naming(self.naming.name, lineage).slot} of an ended lineage dropped")

    def config(self) -> ConnectorConfig:
        """The connector's configuration from settings, spec and the source's deployment row."""
        settings, dsn = self.settings, conninfo_to_dict(self.settings.source.dsn)
        host = str(dsn.get("host") or "127.0.0.1")
        if host.startswith("/"):
            raise SettingsError("source.dsn names a socket: Connect needs a host and port")
        return ConnectorConfig(
            naming=self.naming,
            host=host,
            port=int(str(dsn.get("port") or 5432)),
            database=str(dsn.get("dbname") or dsn.get("user") or "postgres"),
            ssl=_ssl(dsn),
            ssl_password=bool(dsn.get("sslpassword")),
            tables=tuple(spec.table for spec in settings.collections.values()),
            excluded=tuple(
                f"{s.table}.{column}" for s in settings.collections.values() for column in s.exclude
            ),
            placeholder=placeholder(self.source, self.naming.name),
            secrets_file=str(secrets_file(settings)),
            converter="confluent" if settings.connect.converter == "confluent" else "apicurio",
            registry_url=settings.registry.converter_url,
            registry_user=bool(settings.registry.username),
            registry_ca_file=settings.registry.ca_file,
            heartbeat_interval_ms=settings.connect.heartbeat_interval_ms,
            poll_interval_ms=settings.connect.poll_interval_ms,
            snapshot_chunk_rows=settings.connect.snapshot_chunk_rows,
            max_message_bytes=settings.kafka.max_message_bytes,
        )


def _failed(status: ConnectorStatus) -> ConnectUnavailable:
    return ConnectUnavailable(f"connector {status.name} FAILED: {status.cause or 'no trace'}")


def _ssl(dsn: Mapping[str, object]) -> dict[str, str]:
    names = {
        "sslmode": "database.sslmode",
        "sslrootcert": "database.sslrootcert",
        "sslcert": "database.sslcert",
        "sslkey": "database.sslkey",
    }
    return {ours: str(dsn[theirs]) for theirs, ours in names.items() if dsn.get(theirs)}


def check_topics(recorded: Mapping[str, TopicFacts], found: Mapping[str, TopicFacts | None]) -> None:
    """Raise LineageMismatch unless every recorded topic is still the one that was created (H11)."""
    wrong = _not_as_recorded(recorded, found)
    if wrong:
        raise LineageMismatch(f"{wrong}; {REBUILD}")


def lost_topic(state: CaptureState, kafka: Kafka, lineage: int) -> str:
    """The first recorded topic of a lineage that is no longer the one that was created, and why; "" if all are."""
    recorded = state.topics(lineage)
    found = kafka.describe(list(recorded))
    return _not_as_recorded(recorded, {topic: found.get(topic) for topic in recorded})


def _not_as_recorded(recorded: Mapping[str, TopicFacts], found: Mapping[str, TopicFacts | None]) -> str:
    for topic, now in found.items():
        then = recorded[topic]
        if now is None:
            return f"topic {topic} is gone: its changes are lost"
        if now.topic_id != then.topic_id:
            return f"topic {topic} was deleted and made again"
        if now.partitions != then.partitions:
            return f"topic {topic} has {now.partitions} partitions, not the recorded {then.partitions}"
    return ""


def secrets_file(settings: Settings) -> Path:
    """Where Connect finds user and password: `connect.secrets_file`, else a file of ours, written by
    `apply`.
    """
    return Path(settings.connect.secrets_file or settings.home / "connect" / f"{settings.name}.properties")


def write_secrets(settings: Settings) -> bool:
    """Put user and password of source and registry into our own secrets file, mode 0600; a given file is not
    touched. Whether the file was there and is another one now.
    """
    if settings.connect.secrets_file:
        return False
    dsn, path = conninfo_to_dict(settings.source.dsn), secrets_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    values: dict[str, object] = {
        "user": dsn.get("user") or "postgres",
        "password": dsn.get("password") or "",
    }
    if dsn.get("sslpassword"):
        values["sslpassword"] = dsn["sslpassword"]
    registry = settings.registry.access()
    if registry.username:
        values |= {"registry_user": registry.username, "registry_password": registry.password}
    text = "".join(f"{key}={_property(str(value))}\n" for key, value in values.items())
    before = path.read_text(encoding="ascii") if path.exists() else text
    new = path.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(text)
    new.replace(path)
    return before != text


def _property(value: str) -> str:
    """A value as java.util.Properties reads it: ASCII, UTF-16 escapes for whatever is not plain."""
    units = value.encode("utf-16-be")
    codes = (int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))
    return "".join(chr(code) if code < 128 and chr(code).isalnum() else f"\\u{code:04x}" for code in codes)


def lineage_of(state: CaptureState, settings: Settings) -> Naming:
    """The deployment's naming in its newest lineage; the first one if there is none yet."""
    number, topic_prefix = state.lineage() or (1, Naming(settings.name, 1).topic_prefix)
    naming = Naming(settings.name, number)
    if naming.topic_prefix != topic_prefix:
        raise LineageMismatch(
            f"the sink belongs to topics {topic_prefix}.*: the deployment's name was changed"
        )
    return naming


def apply(settings: Settings, progress: Progress, *, load: bool = True) -> None:
    """All steps of this module's docstring up to 5; with `load`, until every table's scan has succeeded."""
    with opened(settings, progress) as capture:
        bring_up(capture.alone(), load=load)


@contextlib.contextmanager
def opened(settings: Settings, progress: Progress) -> Iterator[Capture]:
    """The capture side in its newest lineage, connected to everything."""
    with connect_source(settings.source.dsn) as source, CaptureState.open(settings.sink.dsn) as state:
        state.check_schema()
        yield Capture(
            settings,
            lineage_of(state, settings),
            source,
            state,
            neighbours.kafka(settings),
            neighbours.connect(settings),
            progress,
        )


def bring_up(capture: Capture, *, load: bool) -> None:
    """See `apply`."""
    check_collections(capture.source, capture.settings.collections)
    capture.ensure_publication()
    capture.ensure_topics()
    capture.refuse_gap()
    capture.ensure_connector(restart=write_secrets(capture.settings))
    capture.drop_ended_slots()
    if load:
        loading(capture).run()


def loading(capture: Capture) -> Loading:
    """Loads of this deployment."""
    return Loading(
        naming=capture.naming,
        tables=tables_of(capture.settings),
        source=capture.source,
        state=capture.state,
        kafka=capture.kafka,
        connect=capture.connect,
        read_notifications=partial(neighbours.notifications, capture.settings),
        chunk_rows=capture.settings.connect.snapshot_chunk_rows,
        progress=capture.progress,
    )


def completion(settings: Settings, naming: Naming, state: CaptureState, progress: Progress) -> Completion:
    """What brings the loads of a lineage to their end."""
    kafka, connect = neighbours.kafka(settings), neighbours.connect(settings)
    return Completion(naming, tables_of(settings), state, kafka, connect, progress)


def tables_of(settings: Settings) -> dict[str, str]:
    """`schema.table` by collection."""
    return {name: spec.table for name, spec in settings.collections.items()}


def connector_name(settings: Settings) -> str:
    """The connector keeps its name over lineages."""
    return Naming(settings.name, 1).connector


def wait_searchable(settings: Settings, deadline: float, progress: Progress) -> bool:
    """Until every load is complete; False at the deadline (a time of `time.monotonic()`)."""
    with CaptureState.open(settings.sink.dsn) as state:
        return completion(settings, lineage_of(state, settings), state, progress).wait(deadline)


@dataclass(frozen=True, slots=True)
class Seen:
    """What `connector status` shows."""

    name: str
    connector: str
    task: str
    cause: str
    running: bool
    offsets: Mapping[str, object]
    loads: Mapping[str, str]


def look(settings: Settings) -> Seen:
    """State of connector, stored offsets and first loads. Writes nothing."""
    connect, name = neighbours.connect(settings), connector_name(settings)
    status = connect.status(name)
    with CaptureState.open(settings.sink.dsn) as state:
        offsets = connect.offsets(name, lineage_of(state, settings).topic_prefix)
        loads = {load.name: load.state for load in state.loads(list(settings.collections)).values()}
    return Seen(name, status.connector, status.task, status.cause, status.running, offsets, loads)
