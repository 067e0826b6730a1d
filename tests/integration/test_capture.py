"""Capture on real components: what `connector apply` makes, and the facts about Debezium that DESIGN 3 and 6 use."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

import streams.loads
from connectors.debezium.connect import Connect
from connectors.debezium.naming import Naming
from connectors.debezium.snapshot import re_read
from connectors.kafka import Kafka
from connectors.postgres.capture_state import CaptureState
from connectors.postgres.source import connect_source, inspect_tables
from connectors.postgres.source_schema import migrate_source, print_source_sql, unpublished, unsettled
from schemas.errors import SettingsError
from streams.capture import Capture, loading
from streams.loads import Loading
from streams.settings import load as load_settings
from tests.deployment import ROOT, Deployment, Stack, until
from tests.integration.reading import Reading, Record

pytestmark = pytest.mark.integration

ROWS = 40
CONTENT = (
    "INSERT INTO shop.content (id, title, body, published, price) "
    "SELECT i, 'Title ' || i, 'Body of ' || i, true, 1.5 FROM generate_series({}, {}) i"
)
CUSTOMERS = (
    "INSERT INTO shop.customers (id, full_name, email, segment) "
    "SELECT i, 'Name ' || i, 'mail' || i || '@example.org', 'new' FROM generate_series(1, 4) i"
)


def make_shop(deployment: Deployment) -> None:
    with deployment.source() as source:
        source.execute((ROOT / "infra" / "sample" / "schema.sql").read_text())
        source.execute(CONTENT.format(1, ROWS))
        source.execute(CUSTOMERS)


@pytest.fixture(scope="module")
def captured(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment whose connector runs and whose two tables are loaded into Kafka; no worker."""
    with Deployment.create(stack, tmp_path_factory.mktemp("captured")) as fresh:
        make_shop(fresh)
        fresh.upwell("migrate")
        fresh.upwell("connector", "apply")
        yield fresh


@pytest.fixture(scope="module")
def reading(stack: Stack) -> Reading:
    return Reading(stack.variables["UPWELL_KAFKA_BOOTSTRAP_SERVERS"], stack.variables["UPWELL_REGISTRY_URL"])


def naming(deployment: Deployment) -> Naming:
    return Naming(deployment.name, 1)


def later(reading: Reading, topic: str, before: int, count: int) -> list[Record]:
    """Records beyond the first `before`, once there are `count` of them; in the order they were committed in."""

    def arrived() -> list[Record]:
        records = reading.topic(topic)
        return records if len(records) >= before + count else []

    return until(arrived, 20, f"{count} more records in {topic}")


def new_records(reading: Reading, topic: str, known: list[Record], count: int) -> list[Record]:
    seen = {(record.partition, record.offset) for record in known}
    records = later(reading, topic, len(known), count)
    return [record for record in records if (record.partition, record.offset) not in seen]


def loads(deployment: Deployment) -> dict[str, Any]:
    """Of the collections of the spec."""
    query = "SELECT name, load_state, load_detail FROM upwell.collection WHERE name <> 'canary'"
    with deployment.sink() as sink:
        rows = sink.execute(query).fetchall()
    return {name: (state, detail) for name, state, detail in rows}


def test_the_first_load_reads_every_row_once(captured: Deployment, reading: Reading) -> None:
    records = reading.topic(naming(captured).topic("shop.content"))
    assert sorted(record.key["id"] for record in records) == list(range(1, ROWS + 1))
    assert {record.operation for record in records} == {"r"}


def test_snapshot_rows_have_no_lsn_but_a_sequence(captured: Deployment, reading: Reading) -> None:
    """H2, H8: `sequence[1]` is all that a truncate's fence can be compared with."""
    for record in reading.topic(naming(captured).topic("shop.content")):
        source = record.source
        assert (source["lsn"], source["txId"], source["snapshot"]) == (None, None, "incremental")
        last_commit, lsn = json.loads(source["sequence"])
        assert int(lsn) >= int(last_commit) > 0


def test_excluded_columns_never_leave_connect(captured: Deployment, reading: Reading) -> None:
    for record in reading.topic(naming(captured).topic("shop.customers")):
        assert "email" not in record.value["after"]


def test_a_second_apply_does_nothing(captured: Deployment) -> None:
    config = Connect(captured.environment["UPWELL_CONNECT_URL"]).config(naming(captured).connector)
    before = loads(captured)
    said = captured.upwell("connector", "apply").stdout
    assert "asked for" not in said
    assert "topics created" not in said
    assert loads(captured) == before
    assert Connect(captured.environment["UPWELL_CONNECT_URL"]).config(naming(captured).connector) == config


def test_status_says_what_runs_and_holds_no_secret(captured: Deployment) -> None:
    seen = json.loads(captured.upwell("connector", "status", "--json").stdout)
    assert (seen["connector"], seen["task"], seen["running"]) == ("RUNNING", "RUNNING", True)
    assert set(seen["loads"]) == {"content", "customers"}
    config = Connect(captured.environment["UPWELL_CONNECT_URL"]).config(naming(captured).connector)
    assert config is not None
    assert config["database.password"].startswith("${file:")


def test_a_key_change_is_a_delete_and_a_create_with_headers(captured: Deployment, reading: Reading) -> None:
    topic = naming(captured).topic("shop.content")
    known = reading.topic(topic)
    with captured.source() as source:
        source.execute("UPDATE shop.content SET id = 901 WHERE id = 1")
    new = new_records(reading, topic, known, 3)
    old = [record for record in new if record.key == {"id": 1}]
    assert [record.operation for record in old] == ["d", "tombstone"]
    assert all(json.loads(record.headers["__debezium.newkey"]) == {"id": 901} for record in old)
    (made,) = (record for record in new if record.key == {"id": 901})
    assert made.operation == "c"
    assert json.loads(made.headers["__debezium.oldkey"]) == {"id": 1}
    assert made.source["txId"] == old[0].source["txId"]


def test_a_shift_in_one_statement_deletes_after_it_creates(captured: Deployment, reading: Reading) -> None:
    """H9: in Kafka's order key 2 is made and then deleted, while the source has it."""
    topic = naming(captured).topic("shop.customers")
    with captured.source() as source:
        source.execute("ALTER TABLE shop.customers DROP CONSTRAINT customers_pkey")
        source.execute("ALTER TABLE shop.customers ADD PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED")
        known = reading.topic(topic)
        source.execute("UPDATE shop.customers SET id = id + 1 WHERE id < 4 OR id = 4")
    new = new_records(reading, topic, known, 12)
    about_2 = [record for record in new if record.key == {"id": 2}]
    assert [record.operation for record in about_2] == ["c", "d", "tombstone"]
    assert about_2[0].source["txId"] == about_2[1].source["txId"]


def test_one_key_is_read_again_alone(captured: Deployment, reading: Reading) -> None:
    topic = naming(captured).topic("shop.content")
    known = reading.topic(topic)
    with connect_source(captured.source_dsn) as source:
        re_read(source, "shop.content", [{"id": 7}])
    (record,) = new_records(reading, topic, known, 1)
    assert (record.operation, record.key) == ("r", {"id": 7})


def test_messages_of_others_hold_nothing_up(captured: Deployment, reading: Reading) -> None:
    """Another application's outbox, say. Debezium would write them to a topic that nobody has made, and wait for it."""
    topic = naming(captured).topic("shop.content")
    known = reading.topic(topic)
    with captured.source() as source:
        for transactional in (True, False):
            source.execute("SELECT pg_logical_emit_message(%s, 'outbox', 'of another')", [transactional])
        source.execute("UPDATE shop.content SET body = 'behind them' WHERE id = 8")
    (record,) = new_records(reading, topic, known, 1)
    assert (record.operation, record.key) == ("u", {"id": 8})


def test_truncate_reaches_one_partition_with_a_null_key(captured: Deployment, reading: Reading) -> None:
    """H6."""
    topic = naming(captured).topic("shop.customers")
    known = reading.topic(topic)
    with captured.source() as source:
        source.execute("TRUNCATE shop.customers")
    (record,) = new_records(reading, topic, known, 1)
    assert (record.operation, record.key) == ("t", None)
    assert record.source["lsn"] > 0


def test_a_topic_that_is_not_the_recorded_one_halts(captured: Deployment) -> None:
    topic = naming(captured).topic("shop.content")
    with captured.sink() as sink:
        sink.execute("UPDATE upwell.topic SET partitions = partitions + 1 WHERE topic = %s", [topic])
        done = captured.upwell("connector", "apply", check=False)
        sink.execute("UPDATE upwell.topic SET partitions = partitions - 1 WHERE topic = %s", [topic])
    assert done.returncode == 2
    assert f"topic {topic} has 4 partitions" in done.stderr


def test_killed_in_the_middle_the_scan_is_still_followed(deployment: Deployment, reading: Reading) -> None:
    """Also H24: the scan that a cancelled query ends is completed, not succeeded, and is asked for again."""
    make_shop(deployment)
    with deployment.source() as source:
        source.execute(CONTENT.format(1000, 30_000))
    deployment.upwell("migrate")
    with psycopg.connect(deployment.source_dsn) as blocker, deployment.source() as source:
        first = _start_apply(deployment)
        until(
            lambda: reading.ends(naming(deployment).topic("shop.content")), 60, "the first chunk is in Kafka"
        )
        blocker.execute("LOCK TABLE shop.content IN ACCESS EXCLUSIVE MODE")
        scan = until(lambda: _waiting(source), 30, "the scan waits for the lock")
        first.send_signal(signal.SIGKILL)
        first.communicate()
        signal_id = loads(deployment)["content"][1]["signal"]
        source.execute("SELECT pg_cancel_backend(pid) FROM unnest(%s::int[]) pid", [scan])
    second = _start_apply(deployment)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0, out
    assert "SQL_EXCEPTION" in out
    assert loads(deployment)["content"][1]["signal"] != signal_id
    keys = {record.key["id"] for record in reading.topic(naming(deployment).topic("shop.content"))}
    assert len(keys) == ROWS + 29_001


def test_a_scan_that_debezium_forgot_is_taken_up_again(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If its first look at a table fails, Debezium stays silent about all that it has queued, until a restart."""
    monkeypatch.setattr(streams.loads, "STALL_SECONDS", 5.0)
    make_shop(deployment)
    deployment.upwell("migrate")
    deployment.upwell("connector", "apply", "--no-load")
    said: list[str] = []
    with following(deployment, said) as first_loads:
        with psycopg.connect(deployment.source_dsn) as blocker, deployment.source() as source:
            blocker.execute("LOCK TABLE shop.content IN ACCESS EXCLUSIVE MODE")
            first_loads.request(["content", "customers"])
            look = until(lambda: _waiting(source), 30, "the scan waits for the lock")
            source.execute("SELECT pg_cancel_backend(pid) FROM unnest(%s::int[]) pid", [look])
        first_loads.run()
    assert any("task restarted" in line for line in said)
    assert all(state == "loading" and "ends" in detail for state, detail in loads(deployment).values())


@contextlib.contextmanager
def following(deployment: Deployment, said: list[str]) -> Iterator[Loading]:
    """The first loads of a deployment in this process."""
    variables = {name: value for name, value in deployment.environment.items() if name.startswith("UPWELL_")}
    settings = load_settings(deployment.directory / "upwell.toml", environment=variables)
    with connect_source(settings.source.dsn) as source, CaptureState.open(settings.sink.dsn) as state:
        kafka, connect = Kafka(settings.kafka.bootstrap_servers), Connect(settings.connect.url)
        yield loading(Capture(settings, naming(deployment), source, state, kafka, connect, said.append))


def _start_apply(deployment: Deployment) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "streams.cli", "connector", "apply"],
        cwd=deployment.directory,
        env={**deployment.environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _waiting(source: psycopg.Connection[Any]) -> list[int]:
    query = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND application_name LIKE 'Debezium%'"
    )
    return [pid for (pid,) in source.execute(query).fetchall()]


# --- the source alone -------------------------------------------------------------------------------------------


TABLES = ["shop.content", "shop.customers"]


def test_migration_of_the_source_is_idempotent_and_removes_what_left_the_spec(deployment: Deployment) -> None:
    make_shop(deployment)
    with connect_source(deployment.source_dsn) as source:
        assert migrate_source(source, deployment.name, TABLES)
        assert migrate_source(source, deployment.name, TABLES) == []
        assert unpublished(source, deployment.name, TABLES) == []
        (line,) = migrate_source(source, deployment.name, TABLES[:1])
        assert "shop.customers removed" in line
        (line,) = migrate_source(source, deployment.name, TABLES)
        assert "shop.customers added" in line


def test_the_printed_script_does_all_of_it(deployment: Deployment) -> None:
    make_shop(deployment)
    with connect_source(deployment.source_dsn) as source:
        script = print_source_sql(source, deployment.name, inspect_tables(source, TABLES))
        assert "lock_timeout" in script
        source.execute(script)
        assert migrate_source(source, deployment.name, TABLES) == []


def test_an_older_transaction_holds_the_first_load_back(deployment: Deployment) -> None:
    """H25: its row is in no event, and no scan before its commit sees it."""
    make_shop(deployment)
    with psycopg.connect(deployment.source_dsn) as older, connect_source(deployment.source_dsn) as source:
        older.execute(CONTENT.format(5000, 5000))
        migrate_source(source, deployment.name, TABLES)
        assert unsettled(source, deployment.name, TABLES) == TABLES
        older.commit()
        until(lambda: not unsettled(source, deployment.name, TABLES), 10, "settled after the commit")


@pytest.mark.parametrize(
    ("ddl", "message"),
    [
        ("CREATE TABLE shop.bad (id int)", "has no primary key"),
        ("CREATE UNLOGGED TABLE shop.bad (id int PRIMARY KEY)", "unlogged"),
        ("CREATE VIEW shop.bad AS SELECT 1 AS id", "not an ordinary table"),
        ("CREATE TABLE shop.bad (id int PRIMARY KEY) PARTITION BY RANGE (id)", "is partitioned"),
        ("CREATE TABLE shop.bad (id int PRIMARY KEY DEFERRABLE)", "deferrable primary key"),
        ("SELECT 1", "has no table shop.bad"),
    ],
)
def test_tables_that_cannot_be_captured(deployment: Deployment, ddl: str, message: str) -> None:
    make_shop(deployment)
    with connect_source(deployment.source_dsn) as source:
        source.execute(ddl)
        with pytest.raises(SettingsError, match=message):
            inspect_tables(source, ["shop.bad"])


def test_what_the_catalog_says(deployment: Deployment) -> None:
    make_shop(deployment)
    with connect_source(deployment.source_dsn) as source:
        source.execute(
            "CREATE TABLE shop.pair (b int, a text, long text, made int GENERATED ALWAYS AS (b + 1) STORED, "
            "PRIMARY KEY (a, b))"
        )
        info = inspect_tables(source, ["shop.pair"])["shop.pair"]
    assert [column.name for column in info.key] == ["a", "b"]
    assert info.types == {"b": "integer", "a": "text", "long": "text", "made": "integer"}
    assert info.unsafe({"long", "b"}) == ["long"]
    with pytest.raises(SettingsError, match="generated"):
        info.need({"made"}, "the test")
    with pytest.raises(SettingsError, match="has no column 'nope', which the test names"):
        info.need({"nope"}, "the test")


def test_long_values_need_full_replica_identity(deployment: Deployment) -> None:
    make_shop(deployment)
    with deployment.source() as source:
        source.execute("ALTER TABLE shop.content REPLICA IDENTITY DEFAULT")
    done = deployment.upwell("migrate", "source", check=False)
    assert done.returncode == 2
    assert "ALTER TABLE shop.content REPLICA IDENTITY FULL" in done.stderr
    printed = deployment.upwell("migrate", "source", "--print").stdout
    assert 'ALTER TABLE "shop"."content" REPLICA IDENTITY FULL;' in printed


def test_a_lost_source_is_a_neighbour_that_is_not_there(deployment: Deployment) -> None:
    nowhere = {
        **deployment.environment,
        "UPWELL_SOURCE_DSN": "postgresql://postgres:hunter2@127.0.0.1:9/shop",
    }
    started = time.monotonic()
    done = replace(deployment, environment=nowhere).upwell("migrate", "source", check=False)
    assert done.returncode == 3
    assert "hunter2" not in done.stderr
    assert time.monotonic() - started < 30
