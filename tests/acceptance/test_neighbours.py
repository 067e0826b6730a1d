"""Every fault of Kafka, Connect, source and registry, on a stack that is this module's alone (tests/FAULTS.md).

One deployment goes from one fault to the next. Each time upwell says what it is in one line, and when it is over the
sink is what the source is. What is lost is said to be lost until a rebuild, and never looked at as healthy.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import requests
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from psycopg.conninfo import make_conninfo

from connectors.debezium.connect import Connect
from connectors.debezium.naming import Naming
from connectors.kafka import Kafka
from infra import stack as local
from infra.stack.processes import wait_gone
from tests.acceptance import test_freshness as faults
from tests.acceptance.plain import ROWS, all_searchable, fake_encode, one
from tests.acceptance.test_workers import SUPERVISED
from tests.deployment import Deployment, Stack, until
from tests.fixtures.wrong_registry import WrongRegistry
from tests.oracle import Difference, compare

pytestmark = [pytest.mark.acceptance, pytest.mark.long]

DUPLICATES: Final = (
    "SELECT coalesce(sum(count), 0) FROM upwell.audit WHERE action = 'duplicate' AND topic LIKE %s"
)
LETTERS: Final = "SELECT count(*) FROM upwell.dead_letter"
ENCODED: Final = (
    "SELECT sum(value) FROM upwell.counter WHERE name = 'chunks_encoded' AND collection = 'content'"
)
#: Every row of what a collection has, with the transaction that wrote it.
ALL: Final = """
SELECT 'record ' || _key, xmin::text, r::text FROM upwell.record_content r WHERE _key <> '[1]'
UNION ALL SELECT 'vector ' || key || chunk_no, xmin::text, e::text FROM upwell.embedding_content_g1 e WHERE key <> '[1]'
ORDER BY 1
"""
#: A deadline only: what it is waited for takes seconds, on a machine that has time.
SEEN: Final = 240.0


@dataclass
class Line:
    """The module's deployment with its monitor and workers, which ask for schemas by way of `registry`."""

    deployment: Deployment
    registry: WrongRegistry

    def __post_init__(self) -> None:
        self.start_monitor()
        self.start_workers()

    @property
    def home(self) -> Path:
        return self.deployment.stack.home

    @property
    def naming(self) -> Naming:
        with self.deployment.sink() as sink:
            return Naming(self.deployment.name, one(sink, "SELECT max(number) FROM upwell.lineage"))

    @property
    def topic(self) -> str:
        return self.naming.topic("shop.content")

    def ends(self) -> dict[Any, int]:
        """End offsets of content's topic."""
        kafka = Kafka(self.deployment.environment["UPWELL_KAFKA_BOOTSTRAP_SERVERS"])
        return kafka.end_offsets([self.topic])

    def admin(self) -> AdminClient:
        """To be kept until its answers are there."""
        return AdminClient(
            {"bootstrap.servers": self.deployment.environment["UPWELL_KAFKA_BOOTSTRAP_SERVERS"]}
        )

    def connector(self, path: str = "") -> str:
        url = self.deployment.environment["UPWELL_CONNECT_URL"]
        return f"{url}/connectors/{self.naming.connector}{path}"

    def start_monitor(self, **variables: str) -> None:
        self.monitor = faults.start_monitor(self.deployment, **variables)

    def start_workers(self) -> None:
        self.workers = self.deployment.start_worker(**SUPERVISED, UPWELL_REGISTRY_URL=self.registry.url)  # type: ignore[arg-type]

    def says(self, *words: str) -> None:
        """What the workers' log says."""
        log = self.workers.log
        for each in words:
            until(lambda each=each: each in log.read_text(), SEEN, f"the workers say {each!r}")  # type: ignore[misc]

    def sees(self, verdict: str, *words: str, collection: str = "content") -> str:
        """Wait for a verdict whose reason has these words; the reason."""
        last: dict[str, tuple[str, str]] = {}

        def seen() -> bool:
            last.update(faults.verdicts(self.deployment))
            return last[collection][0] == verdict and all(each in last[collection][1] for each in words)

        try:
            until(seen, SEEN, "")
        except AssertionError:
            raise AssertionError(f"not {verdict} with {words} within {SEEN} s, but {last}") from None
        return last[collection][1]

    def status(self) -> str:
        """What `upwell status` says, in one line."""
        return " ".join(self.deployment.upwell("status", check=False).stdout.split())

    def kill_all(self) -> None:
        """kill -9 of the keeper, with which every component dies, and of whatever else runs."""
        keeper = local.lifecycle._state(self.home)["keeper"]
        for process in (self.workers, self.monitor):
            process.kill()
        os.kill(keeper["pid"], signal.SIGKILL)
        assert wait_gone(keeper["pid"], keeper["born"], 10)

    def up(self) -> None:
        local.up(self.home, progress=lambda line: None)

    def settled(self) -> None:
        """FRESH, and the sink is what the source is, by an oracle that knows neither."""
        self.sees("FRESH")
        self.sees("FRESH", collection="customers")
        until(lambda: all_searchable(self.deployment), SEEN, "all of it searchable")
        until(lambda: not self.differences(), SEEN, "source and sink are equal")

    def differences(self) -> list[Difference]:
        dsns = (self.deployment.source_dsn, self.deployment.sink_dsn)
        found = [compare(*dsns, name, fake_encode) for name in ("content", "customers")]
        return [each for each in found if each]

    def rebuild(self) -> None:
        self.deployment.upwell("connector", "rebuild", "--wait", "60", seconds=150)
        self.settled()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """On a stack of its own, FRESH."""
    folder = tmp_path_factory.mktemp("neighbours")
    home = Path(tempfile.mkdtemp(prefix="upwell-neighbours-"))
    try:
        variables = dict(local.up(home, progress=lambda line: None).variables)
        stack = Stack(home, variables)
        with Deployment.create(stack, folder, faults.spec()) as deployment:
            # Connect reads user and password where `connector apply` writes them.
            deployment.environment |= {"UPWELL_HOME": str(home), "UPWELL_CONNECT_SECRETS_FILE": ""}
            as_carrier(deployment, home, "first")
            faults.capture(deployment)
            with WrongRegistry(deployment.environment["UPWELL_REGISTRY_URL"]) as registry:
                made = Line(deployment, registry)
                made.settled()
                yield made
    finally:
        local.down(home)
        shutil.rmtree(home, ignore_errors=True)


def as_carrier(deployment: Deployment, home: Path, password: str) -> None:
    """The source lets upwell in as a user with a password."""
    admin = make_conninfo(deployment.source_dsn, user="postgres", password="")
    with psycopg.connect(admin, autocommit=True) as source:
        there = one(source, "SELECT count(*) FROM pg_roles WHERE rolname = 'carrier'")
        word = "ALTER" if there else "CREATE"
        source.execute(f"{word} ROLE carrier SUPERUSER REPLICATION LOGIN PASSWORD '{password}'".encode())
        rules = home / "source" / "pg_hba.conf"
        rule = "host all carrier 127.0.0.1/32 scram-sha-256\n"
        if rule not in rules.read_text():
            rules.write_text(rule + rules.read_text())
        source.execute("SELECT pg_reload_conf()")
    deployment.environment["UPWELL_SOURCE_DSN"] = make_conninfo(admin, user="carrier", password=password)


# -- nothing is lost


def test_offsets_that_are_set_back_and_a_registry_that_is_wrong(line: Line) -> None:
    """The group's offsets mean nothing; the sink's, set back under running workers, bring all again for nothing."""
    deployment, registry = line.deployment, line.registry
    with deployment.source() as source, deployment.sink() as sink:
        assert line.workers.stop() == 0
        again, encoded = one(sink, DUPLICATES, line.topic), one(sink, ENCODED)
        _forget_offsets(line)
        registry.passing = False
        source.execute("UPDATE shop.content SET body = 'while the registry was wrong' WHERE id = 2")
        line.start_workers()
        line.says(f"registry at {registry.url} does not give schema", "(status 404)")
        for registry.answer, said in (
            ((500, b"{}"), "(status 500)"),
            ((200, b"<html>"), "JSONDecodeError"),
            ((200, b'{"schema": "null"}'), f"has no schema of topic {line.topic}"),
        ):
            line.says(said)
        registry.passing, registry.delay_seconds = True, 1.0
        line.settled()
        registry.delay_seconds = 0.0
        assert one(sink, LETTERS) == 0
        assert one(sink, DUPLICATES, line.topic) == again, "the group's offsets were looked at"

        until(lambda: one(sink, ENCODED) >= encoded + 1, SEEN, "the first change is counted")
        before = sink.execute(ALL).fetchall()
        sink.execute("UPDATE upwell.position SET next_offset = 0 WHERE topic = %s", [line.topic])
        source.execute("UPDATE shop.content SET body = 'once more' WHERE id = 1")
        line.says("another owner, or a restored sink; a restart begins at the sink's")
        line.settled()
        sent = sum(line.ends().values())
        assert one(sink, DUPLICATES, line.topic) >= again + sent - 2
        assert sink.execute(ALL).fetchall() == before
        until(lambda: one(sink, ENCODED) >= encoded + 2, SEEN, "the other change is counted")
        assert one(sink, ENCODED) == encoded + 2


def _forget_offsets(line: Line) -> None:
    """The group's committed offsets are those of the topic's first record."""
    group = f"upwell-{line.deployment.name}"
    start, admin = [TopicPartition(line.topic, number, 0) for number in range(4)], line.admin()

    def reset() -> bool:
        asked = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, start)])
        try:
            return all(at.error is None for at in asked[group].result(30).topic_partitions)
        except Exception:
            return False

    until(reset, SEEN, "the group's offsets set back")


def test_a_connector_that_others_change_and_a_source_that_locks_and_lets_nobody_in(line: Line) -> None:
    deployment = line.deployment
    config = requests.get(line.connector("/config"), timeout=30).json()
    others = {**config, "skipped.operations": "t", "max.batch.size": "100"}
    requests.put(line.connector("/config"), json=others, timeout=60).raise_for_status()
    said = "runs with other settings than ours: max.batch.size, skipped.operations"
    assert said in line.status()
    assert said in " ".join(deployment.upwell("doctor", "--no-model", check=False).stdout.split())
    deployment.upwell("connector", "apply")
    assert requests.get(line.connector("/config"), timeout=30).json() == config

    with psycopg.connect(deployment.source_dsn) as owner, deployment.source() as source:
        owner.execute("LOCK TABLE shop.content IN ACCESS EXCLUSIVE MODE")
        owner.execute("UPDATE shop.content SET body = 'by who locks it' WHERE id = 3")
        source.execute("UPDATE shop.customers SET notes = 'beside a lock' WHERE id = 1")
        until(lambda: not compare(*_dsns(line), "customers", fake_encode), SEEN, "customers beside a lock")
        assert faults.verdicts(deployment)["customers"][0] == "FRESH"
        owner.commit()
    line.settled()

    with deployment.source() as source:
        source.execute("DROP TABLE upwell.heartbeat")
        # Debezium tries again for ever, and its task says RUNNING meanwhile.
        line.sees("STALE", "replication stands still though the connector runs")
    deployment.upwell("migrate", "source")
    line.settled()


def test_a_password_that_is_changed(line: Line) -> None:
    """Who is in stays in; who comes back is refused, and says so, until `connector apply` has the new one."""
    deployment = line.deployment
    as_carrier(deployment, line.home, "second")
    with deployment.source() as source:
        source.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'carrier' "
            "AND application_name LIKE 'Debezium%'"
        )
    line.sees("STALE", "password authentication failed for user")
    deployment.upwell("connector", "apply")
    assert line.monitor.stop() == 0
    line.start_monitor()
    line.settled()


def _dsns(line: Line) -> tuple[str, str]:
    return line.deployment.source_dsn, line.deployment.sink_dsn


# -- changes are lost


def test_records_that_kafka_removed_and_a_slot_that_was_moved(line: Line) -> None:
    """H23, H27: nothing jumps in silence, and what only a look in time can see stays said."""
    deployment = line.deployment
    with deployment.source() as source, deployment.sink() as sink:
        assert line.workers.stop() == 0
        sent = sum(line.ends().values())
        source.execute("UPDATE shop.content SET body = 'removed by retention' WHERE id < 30")
        source.execute("DELETE FROM shop.content WHERE id BETWEEN 30 AND 35")
        until(lambda: sum(line.ends().values()) > sent + 34, SEEN, "the changes in Kafka")
        admin, ends = line.admin(), line.ends().items()
        removed = [TopicPartition(at.topic, at.partition, end) for at, end in ends]
        for each in admin.delete_records(removed).values():
            each.result(30)
        line.sees("STALE", "GAP, changes are lost", "begins at", "run `upwell connector rebuild`")
        line.start_workers()
        line.says("changes are lost; run upwell connector rebuild; this worker starts again", "worker ended")

        slot, lineage = line.naming.slot, line.naming.lineage
        requests.put(line.connector("/stop"), timeout=60).raise_for_status()
        reads = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
        until(lambda: not one(source, reads, slot), SEEN, "the connector stopped")
        source.execute("UPDATE shop.customers SET notes = 'nobody has seen it' WHERE id = 1")
        beaten = one(source, "SELECT nonce::int FROM upwell.canary")
        until(lambda: one(source, "SELECT nonce::int FROM upwell.canary") > beaten + 1, SEEN, "canaries")
        source.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [slot])
        requests.put(line.connector("/resume"), timeout=60).raise_for_status()
        gaps = "SELECT string_agg(reason, '; ') FROM upwell.gap WHERE lineage = %s"
        until(lambda: one(sink, gaps, lineage), SEEN, "a gap that is written down")
        assert "changes are lost" in line.status()
        assert deployment.upwell("connector", "apply", check=False).returncode == 2

        with psycopg.connect(deployment.source_dsn) as owner:
            owner.execute("LOCK TABLE shop.content IN ACCESS EXCLUSIVE MODE")
            rebuilt = threading.Thread(
                target=deployment.upwell, args=("connector", "rebuild"), kwargs={"seconds": SEEN}
            )
            rebuilt.start()
            held = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND wait_event_type = 'Lock' AND (application_name = 'upwell' OR application_name LIKE 'Debezium%%')"
            )
            until(lambda: one(source, held) > 0, SEEN, "the rebuild waits for a lock")
            owner.commit()
        rebuilt.join()
    line.settled()


def test_a_slot_that_ran_out_and_a_topic_with_more_partitions(line: Line) -> None:
    """H28, H11: both are said, workers halt, and one rebuild, which nobody has to ask for, ends both."""
    deployment, topic = line.deployment, line.topic
    with deployment.source() as source:
        requests.put(line.connector("/stop"), timeout=60).raise_for_status()
        source.execute("UPDATE shop.content SET body = 'in a log that is gone' WHERE id < 20")
        source.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        source.execute("SELECT pg_reload_conf()")
        lost = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s"

        def run_out() -> bool:
            source.execute("SELECT pg_logical_emit_message(false, 'upwell', 'x'), pg_switch_wal()")
            source.execute("CHECKPOINT")
            return bool(one(source, lost, line.naming.slot) == "lost")

        until(run_out, SEEN, "the slot is lost")
        line.sees("STALE", "GAP, changes are lost", "is lost: the source has removed write-ahead log")
        source.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        source.execute("SELECT pg_reload_conf()")
    admin = line.admin()
    for each in admin.create_partitions([NewPartitions(topic, 6)]).values():
        each.result(30)
    assert line.workers.process.wait(SEEN) == 2
    line.says(
        f"topic {topic} has id", "6 partitions; upwell created it with id", "run `upwell connector rebuild`"
    )
    line.start_workers()
    assert line.workers.process.wait(SEEN) == 2
    assert line.monitor.stop() == 0
    line.start_monitor(UPWELL_MONITOR_REBUILD="true")
    rebuilt = "rebuilt: every table is read again"
    until(lambda: rebuilt in line.monitor.log.read_text(), SEEN, "rebuilt by the monitor")
    line.start_workers()
    line.settled()
    assert line.monitor.stop() == 0
    line.start_monitor()


# -- all at once


def test_everything_is_killed_in_the_midst_of_changes(line: Line) -> None:
    """What was taken in and is in no stored position of Connect's comes again, as duplicates (H3)."""
    deployment = line.deployment
    with deployment.source() as source, deployment.sink() as sink:
        duplicates = one(sink, DUPLICATES, f"{deployment.name}%")
        until(
            lambda: _taken_in_and_not_stored(line, source, sink),
            SEEN,
            "a change that is taken in and not stored",
        )
    line.kill_all()
    shutil.copytree(line.home / "source", line.home / "older", symlinks=True)
    line.up()
    line.start_workers()
    line.start_monitor()
    line.settled()
    with deployment.sink() as sink:
        assert one(sink, DUPLICATES, f"{deployment.name}%") > duplicates, "nothing was sent again"


def _taken_in_and_not_stored(
    line: Line, source: psycopg.Connection[Any], sink: psycopg.Connection[Any]
) -> bool:
    connect, naming = Connect(line.deployment.environment["UPWELL_CONNECT_URL"]), line.naming
    taken_in = "SELECT sum(next_offset) FROM upwell.position WHERE topic = %s"
    before = one(sink, taken_in, line.topic)
    source.execute("UPDATE shop.content SET body = body || '.' WHERE id < 25")
    committed = one(source, "SELECT (pg_current_wal_lsn() - '0/0')::bigint")
    until(lambda: one(sink, taken_in, line.topic) >= before + 20, SEEN, "most of it taken in")
    stored = connect.offsets(naming.connector, naming.topic_prefix)
    return bool(stored["lsn"] < committed - 1000)


def test_a_source_that_comes_back_older(line: Line) -> None:
    """All is killed, workers and monitor start first, and the source is the copy of before: H10, H26."""
    deployment, data = line.deployment, line.home / "source"
    with deployment.source() as source:
        source.execute(ROWS, (80, 85))
        source.execute("UPDATE shop.content SET body = 'taken back' WHERE id = 7")
        source.execute("DELETE FROM shop.content WHERE id = 8")
        line.settled()
        last = one(source, "SELECT pg_current_wal_lsn()::text")
    line.kill_all()
    shutil.rmtree(data)
    (line.home / "older").rename(data)
    line.start_workers()
    line.start_monitor()
    overtaking = threading.Thread(target=_overtake, args=(line, last))
    overtaking.start()
    line.up()
    overtaking.join()
    line.sees("STALE", "GAP, changes are lost", "it was restored from an older copy")
    line.rebuild()
    with deployment.sink() as sink:
        assert one(sink, "SELECT count(*) FROM upwell.content WHERE id BETWEEN 80 AND 85") == 0


def _overtake(line: Line, last: str) -> None:
    """The restored source writes more than was taken back, before anybody has looked."""

    def past() -> bool:
        try:
            with line.deployment.source() as source:
                source.execute("SELECT pg_logical_emit_message(false, 'upwell', 'x'), pg_switch_wal()")
                return bool(one(source, "SELECT pg_current_wal_lsn() > %s::pg_lsn", last))
        except psycopg.OperationalError:
            return False

    until(past, SEEN, "the restored source's log is past the old one's end")
