"""What the capture side keeps in the sink: the lineage, its topics, and how far each first load is."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from connectors.kafka import TopicFacts
from connectors.postgres import login
from connectors.postgres.sql import Queries
from connectors.postgres.translate import sink_errors
from schemas.errors import MigrationNeeded, SettingsError, SinkRefused

SQL: Final = Queries.load("capture")

INCOMPLETE: Final = "incomplete"
LOADING: Final = "loading"
COMPLETE: Final = "complete"

#: A key whose re-read brought nothing is looked for again after this long; a re-read itself takes a second.
AGAIN_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """A collection's first load. `detail` while loading: `signal` (its id), `from` (offset in the notifications topic),
    `asked_lsn`; once the table's scan has succeeded also `rows`, `scanned_lsn` and `ends` (the partitions' end offsets
    read after it). `fence_lineage` and `fence_lsn`: the last truncate that was taken in.
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

    def truncated_meanwhile(self, lineage: int) -> bool:
        """Whether a truncate fell into the scan: rows read before it may come after it, above its fence (H8)."""
        if self.fence_lsn is None or self.fence_lineage != lineage or "scanned_lsn" not in self.detail:
            return False
        return int(self.detail["asked_lsn"]) < self.fence_lsn <= int(self.detail["scanned_lsn"])


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

    def _present(self) -> bool:
        return bool(self._rows("schema_present")[0]["present"])

    def live_models(self) -> dict[str, tuple[str, int, int]]:
        """Model, dimension and chunk limit of each live generation, by collection; none before the first migration."""
        found = self._rows("live_models") if self._present() else []
        return {row["collection"]: (row["model"], row["dimension"], row["max_tokens"]) for row in found}

    def lineage(self) -> tuple[int, str] | None:
        """Number and topic prefix of the newest lineage."""
        found = self._rows("lineage")
        return (found[0]["number"], found[0]["topic_prefix"]) if found else None

    def create_lineage(self, number: int, topic_prefix: str) -> None:
        self._execute("create_lineage", {"number": number, "topic_prefix": topic_prefix})

    def topics(self, lineage: int) -> dict[str, TopicFacts]:
        """Recorded topics of a lineage with their identity."""
        found = self._rows("topics", {"lineage": lineage})
        return {row["topic"]: TopicFacts(row["topic_id"], row["partitions"]) for row in found}

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


@contextlib.contextmanager
def connect_sink(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection. Raises SinkUnavailable, SinkRefused, SettingsError if there is no DSN."""
    if not dsn:
        raise SettingsError("sink.dsn is not set: UPWELL_SINK_DSN or [sink] dsn")
    with sink_errors():
        connection = login.connect(dsn, "upwell", SinkRefused, "sink.dsn")
    with connection:
        yield connection
