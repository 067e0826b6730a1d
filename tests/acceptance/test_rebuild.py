"""Lost positions, and the one way out of them; collections that come and go on a running system."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from connectors.kafka import Kafka
from tests.acceptance.plain import FAKE, ROWS, TABLES, all_searchable, fake_encode, one
from tests.deployment import ROOT, Deployment, WorkerProcess, until
from tests.oracle import Difference, compare

pytestmark = pytest.mark.acceptance

SUPERVISED = {"module": "tests.fake_worker", "arguments": ("--processes", "2")}
ENCODED = "SELECT coalesce(sum(value), 0) FROM upwell.counter WHERE name = 'chunks_encoded'"
COMPLETE = "SELECT count(*) FROM upwell.collection WHERE load_state <> 'complete'"
SWEPT = "SELECT count(*) FROM upwell.audit WHERE detail ->> 'reason' LIKE 'swept%%'"


@contextlib.contextmanager
def running(deployment: Deployment) -> Iterator[WorkerProcess]:
    """Two supervised workers; afterwards they end with 0."""
    worker = deployment.start_worker(**SUPERVISED)  # type: ignore[arg-type]
    yield worker
    assert worker.stop() == 0, worker.tail()


def equal(deployment: Deployment, seconds: float = 30) -> None:
    """What is still in Kafka is waited for."""

    def differences() -> list[Difference]:
        names = ("content", "customers")
        found = [compare(deployment.source_dsn, deployment.sink_dsn, name, fake_encode) for name in names]
        return [each for each in found if each]

    until(lambda: not differences(), seconds, "source and sink are equal")


def topics_of(deployment: Deployment, lineage: int) -> list[str]:
    tables = ("shop.content", "shop.customers", "upwell.heartbeat", "upwell.signal", "upwell.canary")
    kafka = Kafka(deployment.environment["UPWELL_KAFKA_BOOTSTRAP_SERVERS"])
    return sorted(kafka.describe([f"{deployment.name}_{lineage}.{table}" for table in tables]))


def slots(deployment: Deployment) -> list[str]:
    with deployment.source() as source:
        query = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
        return [row[0] for row in source.execute(query)]


def test_a_dropped_slot_is_refused_and_rebuilt_without_ghosts(prepared: Deployment) -> None:
    """H28. Changes and deletes that nobody captured; the rebuild is killed in the middle and run again."""
    alone = prepared.start_worker("alone", **FAKE)  # type: ignore[arg-type]
    with running(prepared) as worker, prepared.source() as source, prepared.sink() as sink:
        until(lambda: all_searchable(prepared), 60, "searchable")
        until(lambda: one(sink, COMPLETE) == 0, 30, "complete by the workers alone")
        refused = prepared.upwell("connector", "delete", "--slot", "--offsets", check=False)
        assert refused.returncode == 2
        assert "lost" in refused.stdout
        assert "--yes" in refused.stderr
        assert slots(prepared) == [f"upwell_{prepared.name}_1"]
        prepared.upwell("connector", "delete", "--slot", "--offsets", "--yes")
        assert slots(prepared) == []
        prepared.upwell("connector", "delete", "--slot", "--yes")

        source.execute("DELETE FROM shop.content WHERE id <= 5")
        source.execute("UPDATE shop.content SET body = 'another ' || id WHERE id BETWEEN 6 AND 9")
        source.execute(ROWS, (60, 61))
        lost = prepared.upwell("connector", "apply", check=False)
        assert lost.returncode == 2
        assert "is gone: what was committed since is lost; run `upwell connector rebuild`" in lost.stderr
        status = prepared.upwell("status", check=False)
        assert "connector rebuild" in status.stdout

        until(lambda: one(sink, "SELECT count(*) FROM upwell.pending") == 0, 30, "nothing is pending")
        encoded = one(sink, ENCODED)
        killed = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "connector", "rebuild"],
            cwd=prepared.directory,
            env={**prepared.environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: one(sink, "SELECT max(number) FROM upwell.lineage") == 2, 60, "lineage 2")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        said = prepared.upwell("connector", "rebuild", "--wait", "90", seconds=150).stdout
        assert "going on with it" in said

        assert one(sink, COMPLETE) == 0
        assert one(sink, SWEPT) == 5
        equal(prepared)
        until(lambda: one(sink, ENCODED) == encoded + 6, 10, "only what had changed was encoded")
        assert slots(prepared) == [f"upwell_{prepared.name}_2"]
        assert topics_of(prepared, 1) == []
        assert "lineage 2 has begun" in worker.log.read_text()
        until(lambda: alone.process.poll() is not None, 30, "a worker without supervisor ends")
        assert alone.process.returncode == 1, alone.tail()
        assert '"exit_code": 2' not in worker.log.read_text()
        source.execute("DELETE FROM shop.content WHERE id = 60")
        source.execute("UPDATE shop.content SET body = 'live again' WHERE id = 61")
        until(
            lambda: (
                one(sink, "SELECT string_agg(chunk_text, ' ') FROM upwell.content WHERE id >= 60")
                == "Piece 61\n\nlive again\n\na, b"
            ),
            30,
            "live changes of the new lineage",
        )
        equal(prepared)


@pytest.mark.long
def test_collections_come_and_go_on_a_running_system(deployment: Deployment) -> None:
    """Only the spec and `migrate`: topics, connector, load and workers follow, while writes go on (H19, H25)."""
    deployment.cli = "tests.fake_cli"
    spec = (deployment.directory / "upwell.toml").read_text()
    both, _, _ = spec.partition("\n[collections.customers]")
    (deployment.directory / "upwell.toml").write_text(both)
    with deployment.source() as source:
        source.execute(TABLES)
        source.execute(ROWS, (1, 50))
        source.execute(
            "INSERT INTO shop.customers SELECT i, 'Name ' || i, 'x', 'new', '{a}', 'n', true, now() "
            "FROM generate_series(1, 30) i"
        )
    deployment.upwell("migrate")
    deployment.upwell("connector", "apply")
    with running(deployment) as worker, deployment.sink() as sink:
        with _writing(deployment) as written:
            until(lambda: one(sink, "SELECT count(DISTINCT id) FROM upwell.content") >= 50, 60, "searchable")
            (deployment.directory / "upwell.toml").write_text(spec)
            with deployment.source() as source, source.transaction():
                source.execute(
                    "INSERT INTO shop.customers VALUES (99, 'open before', 'x', 's', '{}', 'n', true, now())"
                )
                added = _in_background(deployment, "migrate")
                log = deployment.directory / "background.log"
                until(lambda: "customers waits for an older transaction" in log.read_text(), 120, "it waits")
                assert added.poll() is None
            until(lambda: added.poll() is not None, 120, "migrate ends")
            assert added.returncode == 0, log.read_text()
            until(
                lambda: one(sink, "SELECT count(DISTINCT id) FROM upwell.customers") == 31, 60, "the new one"
            )
            until(lambda: one(sink, COMPLETE) == 0, 60, "complete by the workers alone")

            (deployment.directory / "upwell.toml").write_text(both)
            refused = deployment.upwell("migrate", check=False)
            assert refused.returncode == 2
            assert "collection customers is in the sink, but not in the spec" in refused.stderr
            said = deployment.upwell("migrate", "--remove", "customers").stdout
            assert "collection customers removed: 31 records, 31 vectors" in said
            for relation in ("customers", "record_customers", "embedding_customers_g1"):
                assert one(sink, "SELECT to_regclass(%s)", f"upwell.{relation}") is None
            assert topics_of(deployment, 1).count(f"{deployment.name}_1.shop.customers") == 0
            with deployment.source() as source:
                source.execute("UPDATE shop.customers SET notes = 'nobody listens'")
            deployment.upwell("migrate", "--remove", "customers")

            (deployment.directory / "upwell.toml").write_text(spec)
            deployment.upwell("migrate")
            until(lambda: one(sink, "SELECT count(DISTINCT id) FROM upwell.customers") == 31, 60, "again")
            before = written[0]
            until(lambda: written[0] > before + 20, 30, "writes go on")
        until(lambda: all_searchable(deployment), 60, "all of it searchable")
        equal(deployment)
        assert "halted" not in worker.log.read_text()


@contextlib.contextmanager
def _writing(deployment: Deployment) -> Iterator[list[int]]:
    """Rows of shop.content change all the time; the number of changes so far."""
    count, stop = [0], threading.Event()

    def write() -> None:
        with deployment.source() as source:
            while not stop.wait(0.02):
                count[0] += 1
                source.execute(
                    "UPDATE shop.content SET body = %s WHERE id = %s", (f"v {count[0]}", count[0] % 50 + 1)
                )

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        thread.join()


def _in_background(deployment: Deployment, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "streams.cli", *arguments],
        cwd=deployment.directory,
        env={**deployment.environment, "PYTHONPATH": str(ROOT)},
        stdout=(deployment.directory / "background.log").open("wb"),
        stderr=subprocess.STDOUT,
    )
