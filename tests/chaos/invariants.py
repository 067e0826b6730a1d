"""I1 to I8, from source, sink, audit and topic, each asked on its own. Shares no code with the pipeline."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
import requests
from confluent_kafka import Consumer, KafkaException, TopicPartition
from psycopg import sql

from tests.acceptance.plain import one
from tests.chaos.errors import Violated
from tests.chaos.line import COLLECTIONS, Line
from tests.chaos.nemesis import POISON, Nemesis
from tests.chaos.workload import Workload
from tests.oracle import Encode, compare

#: I6: how long after the last fault everything is searchable and FRESH. At a load of 25 workers need 90 s to start.
DRAINED_SECONDS: Final = 180.0
OUTCOMES: Final = ("applied", "unchanged", "superseded", "duplicate", "deleted", "ignored", "dead_letter")

STATE: Final = """
SELECT f.collection, f.verdict, f.reason, coalesce(f.watermark > %(paused_at)s, false),
       (SELECT count(*) FROM upwell.pending p WHERE p.collection = f.collection),
       (SELECT count(*) FROM upwell.dead_letter d WHERE d.collection = f.collection AND d.closed_at IS NULL),
       (SELECT count(*) FROM upwell.repair r WHERE r.collection = f.collection)
  FROM upwell.freshness f
"""
#: Offsets that have no outcome or two, and outcomes that there are not (I4).
UNACCOUNTED: Final = """
SELECT topic, partition, before, first_offset, last_offset, count, action
  FROM (SELECT *, coalesce(lag(last_offset) OVER (PARTITION BY topic, partition ORDER BY first_offset, last_offset),
                           -1) AS before
          FROM upwell.audit WHERE topic IS NOT NULL AND collection <> 'canary') a
 WHERE first_offset <> before + 1 OR count <> last_offset - first_offset + 1 OR action <> ALL (%(outcomes)s)
 ORDER BY topic, partition, first_offset LIMIT 5
"""
#: Accepted versions of a key that are not above the one before (I2).
BACKWARDS: Final = """
SELECT collection, key, version, before
  FROM (SELECT collection, key, (lineage, first_offset) AS version,
               lag((lineage, first_offset)) OVER (PARTITION BY collection, key ORDER BY at) AS before
          FROM upwell.audit WHERE action IN ('applied', 'deleted') AND topic IS NOT NULL AND key IS NOT NULL) a
 WHERE version <= before LIMIT 5
"""
TAKEN_IN: Final = """
SELECT t.topic, p.partition, coalesce(q.next_offset, 0),
       coalesce((SELECT max(last_offset) + 1 FROM upwell.audit a
                  WHERE a.topic = t.topic AND a.partition = p.partition), 0)
  FROM upwell.topic t CROSS JOIN LATERAL generate_series(0, t.partitions - 1) AS p(partition)
  LEFT JOIN upwell.position q ON q.topic = t.topic AND q.partition = p.partition
 WHERE t.collection = ANY (%(collections)s) AND t.lineage = (SELECT max(number) FROM upwell.lineage)
 ORDER BY t.topic, p.partition
"""


@dataclass
class Checks:
    """Checked again and again over a run. `read`: how far each partition of the topics was read by us."""

    line: Line
    nemesis: Nemesis
    workload: Workload
    encode: Encode
    read: dict[tuple[str, int], int] = field(default_factory=dict)
    seconds: float = 0.0

    def quiet(self) -> str:
        """Wait until everything is through, then check. A line that says what was checked. Raises Violated.

        Nothing writes meanwhile, and nothing strikes.
        """
        self.line.run_on()
        with self.line.deployment.source() as source:
            paused_at = one(source, "SELECT clock_timestamp()")
        started = time.monotonic()
        self._drained(paused_at)
        drained = time.monotonic() - started
        rows = self._complete()
        offsets = self._accounted()
        self._vectors()
        self._healthy()
        outputs = self._nothing_leaks()
        took = time.monotonic() - started
        return (
            f"all invariants hold: {rows} rows, {offsets} offsets, {outputs} outputs; "
            f"drained after {drained:.0f} s, checked in {took - drained:.0f} s"
        )

    def _drained(self, paused_at: Any) -> None:
        """I6. The watermark says itself that all before it is there; then it must be."""
        deadline = time.monotonic() + DRAINED_SECONDS
        while True:
            rows = self._state(paused_at)
            if len(rows) == len(COLLECTIONS) and all(
                verdict == "FRESH" and past and not pending and not letters and not repairs
                for _, verdict, _, past, pending, letters, repairs in rows
            ):
                return
            if time.monotonic() > deadline:
                raise Violated(
                    "I6 liveness",
                    f"not drained {DRAINED_SECONDS:.0f} s after the last fault: "
                    f"(collection, verdict, reason, watermark past, pending, dead letters, in doubt) {rows}; "
                    f"connector {self._connector()}",
                )
            if any(row[5] for row in rows):
                self.nemesis.waive()
                self._no_other_letters()
            time.sleep(0.3)

    def _state(self, paused_at: Any) -> list[tuple[Any, ...]]:
        try:
            with self.line.deployment.sink() as sink:
                return sink.execute(STATE.encode(), {"paused_at": paused_at}).fetchall()
        except psycopg.OperationalError:
            return []

    def _connector(self) -> Any:
        try:
            return self.line.connector("/status")
        except AssertionError as error:
            return error

    def _no_other_letters(self) -> None:
        with self.line.deployment.sink() as sink:
            letters = sink.execute(
                "SELECT id, collection, stage, key, error_class, error FROM upwell.dead_letter "
                "WHERE closed_at IS NULL AND value_bytes IS DISTINCT FROM %s",
                [POISON],
            ).fetchall()
        if letters:
            raise Violated("I6 liveness", f"dead letters of changes that are none: {letters[:5]}")

    def _complete(self) -> int:
        """I1 and I5: every row, its metadata, its text and its recomputed vectors, and no other."""
        rows = 0
        for collection in COLLECTIONS:
            deployment = self.line.deployment
            found = compare(deployment.source_dsn, deployment.sink_dsn, collection, self.encode)
            if found:
                raise Violated("I1 completeness", f"{collection}: {found}")
            with deployment.source() as source:
                rows += one(source, f"SELECT count(*) FROM shop.{collection}")
        return rows

    def _accounted(self) -> int:
        """I4 and I2: audit against itself, against positions, against the topics as Kafka has them."""
        with self.line.deployment.sink() as sink:
            unaccounted = sink.execute(UNACCOUNTED.encode(), {"outcomes": list(OUTCOMES)}).fetchall()
            backwards = sink.execute(BACKWARDS.encode()).fetchall()
            taken_in = sink.execute(TAKEN_IN.encode(), {"collections": list(COLLECTIONS)}).fetchall()
        if unaccounted:
            raise Violated(
                "I4 accounting", f"(topic, partition, before, first, last, count, outcome) {unaccounted}"
            )
        if backwards:
            raise Violated("I2 no stale overwrite", f"(collection, key, version, version before) {backwards}")
        with self._consumer() as consumer:
            for topic, partition, position, audited in taken_in:
                end = self._read(consumer, topic, partition)
                if not position == audited == end:
                    raise Violated(
                        "I4 accounting",
                        f"{topic}/{partition}: position {position}, audited {audited}, end in Kafka {end}",
                    )
        return sum(position for _, _, position, _ in taken_in)

    @contextlib.contextmanager
    def _consumer(self) -> Iterator[Consumer]:
        consumer = Consumer(
            {
                "bootstrap.servers": self.line.deployment.environment["UPWELL_KAFKA_BOOTSTRAP_SERVERS"],
                "group.id": f"chaos-{self.line.deployment.name}",
                "enable.auto.commit": False,
                "log_level": 0,
            }
        )
        try:
            yield consumer
        finally:
            consumer.close()

    def _read(self, consumer: Consumer, topic: str, partition: int) -> int:
        """Read what is new of a partition, offset by offset; its end."""
        start, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=30)
        at = max(self.read.get((topic, partition), 0), start)
        if start > 0:
            raise Violated("I4 accounting", f"{topic}/{partition} begins at {start}: Kafka has lost the rest")
        consumer.assign([TopicPartition(topic, partition, at)])
        deadline = time.monotonic() + 60
        while at < end:
            message = consumer.poll(1)
            if message is not None and message.error() is None:
                if message.offset() != at:
                    raise Violated(
                        "I4 accounting",
                        f"{topic}/{partition}: after {at - 1} Kafka has {message.offset()}, no offset between",
                    )
                at += 1
            elif time.monotonic() > deadline:
                raise KafkaException(f"{topic}/{partition} cannot be read beyond {at} of {end}")
        self.read[topic, partition] = at
        return int(end)

    def _vectors(self) -> None:
        """I5: finite and of length 1. That they are those of the texts is compared with the rows."""
        for collection in COLLECTIONS:
            with self.line.deployment.sink() as sink:
                wrong = sink.execute(
                    sql.SQL(
                        "SELECT id, chunk_no FROM {} WHERE NOT vector_norm(embedding) BETWEEN 0.99 AND 1.01 LIMIT 5"
                    ).format(sql.Identifier("upwell", collection))
                ).fetchall()
            if wrong:
                raise Violated("I5 vectors", f"{collection} (id, chunk) {wrong}")

    def _healthy(self) -> None:
        """I6, and what intake has counted: changes of before a watermark that was already published."""
        status = self._connector()
        states = [status["connector"]["state"], *(task["state"] for task in status["tasks"])]
        if set(states) != {"RUNNING"} or len(states) != 2:
            raise Violated("I6 liveness", f"connector and task are {states}")
        with self.line.deployment.sink() as sink:
            violations = one(sink, "SELECT sum(violations) FROM upwell.watermark")
        if violations:
            raise Violated("freshness", f"{violations} changes came from before a published watermark")

    def _nothing_leaks(self) -> int:
        """I8: no planted secret, no placeholder, nothing of an excluded column; how many outputs were searched."""
        needles = {
            **self.line.planted,
            "the placeholder": str(self.line.connector("/config")["unavailable.value.placeholder"]),
        }
        searched = 0
        for place, text in self._outputs():
            searched += 1
            for what, needle in needles.items():
                if needle in text or needle.encode().hex() in text:
                    raise Violated("I8 nothing leaks", f"{what} stands in {place}")
        return searched

    def _outputs(self) -> Iterator[tuple[str, str]]:
        logs = [
            *self.line.deployment.directory.glob("*.log"),
            *(self.line.home / "log" / f"{name}.log" for name in ("connect", "kafka", "registry", "keeper")),
        ]
        for path in logs:
            yield str(path), _new_text(path, self.read)
        yield from self._tables()
        yield from self._pages()

    def _tables(self) -> Iterator[tuple[str, str]]:
        with self.line.deployment.sink() as sink:
            names = sink.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'upwell'::regnamespace AND relkind = 'r'"
            ).fetchall()
            for (name,) in names:
                if re.fullmatch(r"(embedding|repeated)_.*", name):
                    query = sql.SQL(
                        "SELECT key || chunk_text FROM {}"
                    )  # a vector of 384 numbers says nothing
                else:
                    query = sql.SQL("SELECT t::text FROM {} AS t")
                rows = sink.execute(query.format(sql.Identifier("upwell", name)))
                yield f"upwell.{name}", "\n".join(row[0] for row in rows)

    def _pages(self) -> Iterator[tuple[str, str]]:
        with self.line.deployment.sink() as sink:
            rows = sink.execute(
                "SELECT 'monitor', url FROM upwell.monitor UNION SELECT slot, url FROM upwell.worker"
            ).fetchall()
        token = {"Authorization": "Bearer " + self.line.planted["the monitor's token"]}
        for name, url in rows:
            for path in ("", "metrics", "api/v1/live", "api/v1/freshness"):
                text = _page(f"{url.rstrip('/')}/{path}", token if name == "monitor" else {})
                if text:
                    yield f"{path or 'page'} of {name}", text


def _new_text(path: Path, read: dict[tuple[str, int], int]) -> str:
    """What was written to a log since the last look, and a little before it."""
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, read.get((str(path), -1), 0) - 200))
        text = log.read()
        read[str(path), -1] = log.tell()
    return text.decode(errors="replace")


def _page(url: str, headers: Mapping[str, str]) -> str:
    """Of a process that may long be gone: then there is nothing on it."""
    try:
        return requests.get(url, headers=headers, timeout=5).text
    except requests.RequestException:
        return ""
