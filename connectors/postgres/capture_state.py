"""What the capture side keeps in the sink: the lineage, its topics, and how far each first load is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from connectors.kafka import TopicFacts
from connectors.postgres import login
from connectors.postgres.migrate import check_schema, lock_collections
from connectors.postgres.sql import Queries
from connectors.postgres.sweep import Scan, Sweep
from connectors.postgres.translate import sink_errors
from schemas.errors import MigrationNeeded, SettingsError, SinkRefused
from schemas.sink import GenerationInfo

SQL: Final = Queries.load("capture")

INCOMPLETE: Final = "incomplete"
LOADING: Final = "loading"
COMPLETE: Final = "complete"

#: A key whose re-read brought nothing is looked for again after this long; a re-read itself takes a second.
AGAIN_SECONDS: Final = 30.0

#: A worker says every five seconds that it lives.
SILENT_SECONDS: Final = 20.0

#: The collection that a topic feeds, None for a service topic, and what the broker says of it.
RecordedTopic = tuple[str | None, TopicFacts]


@dataclass(frozen=True, slots=True)
class Load:
    """A collection's load.

    `detail` while loading: `signal` (its id), `from` (offset in the notifications topic), `asked_lsn`, `starts` (end
    offset of each partition before it was asked for); once the table's scan has succeeded also `rows`, `scanned_lsn`
    and `ends` (end offsets read after it); `settled` when those were read after the connector had stored that all of
    the scan is in Kafka. While incomplete: `reason` (`truncated`, `rebuild`) and, of a scan that a truncate has spoilt
    and that may still be under way, `from`. `fence_lineage` and `fence_lsn`: the last truncate that was taken in.
    """

    name: str
    state: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    fence_lineage: int | None = None
    fence_lsn: int | None = None

    @property
    def scanned(self) -> bool:
        """Whether the whole table was read."""
        return self.state == COMPLETE or "ends" in self.detail

    @property
    def spoilt_scan(self) -> bool:
        """Whether a scan may be under way that a truncate has made worthless: its end is waited for."""
        return self.state == INCOMPLETE and "from" in self.detail

    @property
    def begun(self) -> bool:
        """Whether it was asked for once, and there is somebody to follow its scan, or to ask again."""
        return self.state != COMPLETE and bool(self.detail)

    @property
    def rebuilding(self) -> bool:
        """Whether `connector rebuild` has begun a lineage, and the table is not asked for yet."""
        return self.state == INCOMPLETE and self.detail.get("reason") == "rebuild"

    def truncated_meanwhile(self, lineage: int) -> bool:
        """Whether a truncate fell into the scan: rows read before it may come after it, above its fence (H8)."""
        if self.fence_lsn is None or self.fence_lineage != lineage or "scanned_lsn" not in self.detail:
            return False
        return int(self.detail["asked_lsn"]) < self.fence_lsn <= int(self.detail["scanned_lsn"])


@dataclass(frozen=True, slots=True)
class Deployment:
    """The newest lineage, its collections' topics with their ids, and the columns of all record tables."""

    lineage: int
    topics: tuple[str, ...]
    columns: tuple[str, ...]

    def difference(self, other: Deployment, served: Collection[str]) -> str:
        """What is otherwise in `other` for a worker that serves these collections, in words; "" if nothing is."""
        if self.lineage != other.lineage:
            return f"lineage {other.lineage} has begun"
        changed = set(self.topics) ^ set(other.topics)
        if changed:
            return f"topics have come or gone: {', '.join(sorted({each.split()[0] for each in changed}))}"
        tables = {f"record_{name}" for name in served}
        moved = sorted(
            each for each in set(self.columns) ^ set(other.columns) if each.partition(".")[0] in tables
        )
        return f"columns have come or gone: {', '.join(moved)}" if moved else ""


class CaptureState:
    """Autocommit: each call is one statement, so being killed between two leaves a state to go on from."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    @classmethod
    @contextlib.contextmanager
    def open(cls, dsn: str) -> Iterator[CaptureState]:
        """Raises SinkUnavailable, MigrationNeeded if the sink has no schema `upwell` yet."""
        with connect_sink(dsn) as connection:
            self = cls(connection)
            if not self._present():
                raise MigrationNeeded("the sink has no upwell schema yet: run `upwell migrate` first")
            yield self

    def check_schema(self) -> None:
        """Raise MigrationNeeded unless the schema is just the one that this code was written for."""
        check_schema(self._connection)

    def _present(self) -> bool:
        return bool(self._rows("schema_present")[0]["present"])

    def generations(self) -> dict[str, list[GenerationInfo]]:
        """Those that are fed, by collection, the live one first; none before the first migration."""
        found: dict[str, list[GenerationInfo]] = {}
        for row in self._rows("generations") if self._present() else []:
            found.setdefault(row["collection"], []).append(GenerationInfo(**row))
        return found

    def lineage(self) -> tuple[int, str] | None:
        """Number and topic prefix of the newest lineage."""
        found = self._rows("lineage")
        return (found[0]["number"], found[0]["topic_prefix"]) if found else None

    def deployment(self) -> Deployment:
        """What a worker that starts now is started for."""
        row = self._rows("deployment")[0]
        return Deployment(row["lineage"], tuple(row["topics"]), tuple(row["columns"]))

    def begin_lineage(self, number: int, topic_prefix: str, topics: Mapping[str, RecordedTopic]) -> None:
        """All at once: nothing of an older lineage is taken in from here on, and every table is to be read again.

        Nothing if it has begun.
        """
        with sink_errors(), self._connection.transaction():
            lock_collections(self._connection)
            lineage = {"number": number, "topic_prefix": topic_prefix}
            if self._connection.execute(SQL["create_lineage"], lineage).rowcount == 0:
                return
            for topic, (collection, facts) in topics.items():
                self.record_topic(number, topic, collection, facts)
            if number > 1:
                self._connection.execute(SQL["begin_loads"])

    def ended_topics(self, lineage: int) -> list[str]:
        """Recorded topics of lineages before this one."""
        return [row["topic"] for row in self._rows("ended_topics", {"lineage": lineage})]

    def collection_topics(self, collection: str) -> list[str]:
        """Recorded topics of one collection."""
        return [row["topic"] for row in self._rows("collection_topics", {"collection": collection})]

    def forget_topics(self, topics: Collection[str]) -> None:
        """Topics with their positions: a topic of the name that is made anew begins at 0."""
        with sink_errors(), self._connection.transaction():
            self._execute("forget_topics", {"topics": list(topics)})

    def wait_restarted(self, seconds: float) -> bool:
        """Until each worker that lives was started after this call, or seems dead. False if one was not in time."""
        moment = self._rows("clock")[0]["now"]
        parameters = {"moment": moment, "silent_seconds": SILENT_SECONDS}
        deadline = time.monotonic() + seconds
        while self._rows("workers_of_before", parameters)[0]["workers"]:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def sweep(self, scan: Scan) -> Sweep:
        """The sweep after a scan."""
        return Sweep(self._connection, scan)

    def try_completing(self) -> bool:
        """Whether this session, and no other, brings loads to their end."""
        return bool(self._rows("try_completing")[0]["taken"])

    def topics(self, lineage: int) -> dict[str, TopicFacts]:
        """Recorded topics of a lineage with their identity."""
        found = self._rows("topics", {"lineage": lineage})
        return {row["topic"]: TopicFacts(row["topic_id"], row["partitions"]) for row in found}

    def gaps(self, lineage: int) -> list[str]:
        """Lost changes that a monitor saw only once, in words."""
        return [row["reason"] for row in self._rows("gaps", {"lineage": lineage})]

    def record_topic(self, lineage: int, topic: str, collection: str | None, facts: TopicFacts) -> None:
        parameters = {"topic": topic, "lineage": lineage, "collection": collection}
        self._execute(
            "record_topic", {**parameters, "topic_id": facts.topic_id, "partitions": facts.partitions}
        )

    def loads(self, names: Collection[str]) -> dict[str, Load]:
        """First loads of those collections that the sink knows."""
        found = self._rows("loads", {"names": list(names)})
        return {row["name"]: Load(**{**row, "detail": row["detail"] or {}}) for row in found}

    def set_load(self, name: str, state: str, detail: Mapping[str, Any]) -> Load:
        self._execute("set_load", {"name": name, "state": state, "detail": Jsonb(dict(detail))})
        return Load(name, state, detail)

    def is_loading(self) -> bool:
        """Whether any table is being read for its first load."""
        return bool(self._rows("loading")[0]["loading"])

    def is_scanned(self, names: Collection[str]) -> bool:
        """Whether any of these loads has only to be completed."""
        return bool(self._rows("scanned", {"names": list(names)})[0]["scanned"])

    def try_capturing(self) -> bool:
        """Whether this session, and no other, applies, rebuilds and follows loads from here on."""
        return bool(self._rows("try_capturing")[0]["taken"])

    def try_pacing(self) -> bool:
        """Whether this session, and no other, has first loads paused and resumed."""
        return bool(self._rows("try_pacing")[0]["taken"])

    def positions(self, topic: str) -> dict[int, int]:
        """Next offset by partition; a partition that nothing was taken from is absent."""
        return {row["partition"]: row["next_offset"] for row in self._rows("positions", {"topic": topic})}

    def backfill_pending(self, collection: str) -> int:
        return int(self._rows("backfill_pending", {"collection": collection})[0]["rows"])

    @contextlib.contextmanager
    def signalling(self) -> Iterator[None]:
        """Nobody else sends a signal meanwhile, and none is sent by whom a state that is written here concerns."""
        self._execute("lock_signals", {})
        try:
            yield
        finally:
            self._execute("unlock_signals", {})

    def re_reading(self, names: Collection[str]) -> list[str]:
        """Collections of which single rows may be under way again."""
        parameters = {"names": list(names), "again_seconds": AGAIN_SECONDS}
        return [row["collection"] for row in self._rows("re_reading", parameters)]

    def _rows(self, query: str, parameters: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        with sink_errors(), self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(SQL[query], parameters).fetchall()

    def _execute(self, query: str, parameters: Mapping[str, object]) -> None:
        with sink_errors():
            self._connection.execute(SQL[query], parameters)


def open_sink(dsn: str, application: str = "upwell") -> psycopg.Connection[Any]:
    """An autocommit connection. Raises SinkUnavailable, SinkRefused, SettingsError if there is no DSN."""
    if not dsn:
        raise SettingsError("sink.dsn is not set: UPWELL_SINK_DSN or [sink] dsn")
    with sink_errors():
        return login.connect(dsn, application, SinkRefused, "sink.dsn")


@contextlib.contextmanager
def connect_sink(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """As `open_sink`, for a while."""
    with open_sink(dsn) as connection:
        yield connection
