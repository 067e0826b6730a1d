"""The design's table of verdicts on real components, under an oracle that never looks away (DESIGN 7).

One deployment through one fault after the other. All the while rows are changed, and whoever asks `upwell.freshness` is
never told FRESH, and never given a watermark, that an unreflected change contradicts.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
import requests
from confluent_kafka import Producer
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.acceptance.plain import FAKE, ROWS, TABLES, one
from tests.chaos.claims import Oracle
from tests.deployment import SPEC, Deployment, WorkerProcess, until
from tests.fixtures.proxy import Proxy

pytestmark = pytest.mark.acceptance

#: Rounds and heartbeats are often here, so that a threshold may be short.
THRESHOLD: Final = 8.0
ROUND: Final = 1.0
OFTEN: Final = {
    "UPWELL_MONITOR_ROUND_SECONDS": "1",
    "UPWELL_MONITOR_EVALUATE_SECONDS": "0.5",
    "UPWELL_MONITOR_RESTART_SECONDS": "2",
    "UPWELL_CONNECT_HEARTBEAT_INTERVAL_MS": "200",
}
#: What a fault may take to be seen, and its end: with some air, because two cores do all of it.
SEEN: Final = THRESHOLD + 3 * ROUND + 20
BACK: Final = 40.0


def spec(threshold_seconds: float = THRESHOLD) -> str:
    """That of the shop, with a short threshold."""
    slo = f"slo = {{{{ threshold_seconds = {threshold_seconds} }}}}\n"
    return SPEC.replace("chunk = {{", slo + "chunk = {{")


def capture(deployment: Deployment) -> None:
    """Two tables, 50 rows, one of which the oracle changes; nobody works yet."""
    deployment.environment.update(OFTEN)
    deployment.cli = "tests.fake_cli"
    with deployment.source() as source:
        source.execute(TABLES)
        source.execute(ROWS, (1, 50))
        source.execute("UPDATE shop.content SET title = 'number 0' WHERE id = 1")
        source.execute("INSERT INTO shop.customers (id, full_name, segment) VALUES (1, 'A', 'b')")
    deployment.upwell("migrate")
    deployment.upwell("connector", "apply", seconds=180)


@pytest.fixture
def line(deployment: Deployment) -> Deployment:
    """Captured; thresholds are short."""
    (deployment.directory / "upwell.toml").write_text(spec().format(name=deployment.name))
    capture(deployment)
    return deployment


def verdicts(deployment: Deployment) -> dict[str, tuple[str, str]]:
    with deployment.sink() as sink:
        rows = sink.execute("SELECT collection, verdict, reason FROM upwell.freshness").fetchall()
    return {name: (verdict, reason) for name, verdict, reason in rows}


def sees(deployment: Deployment, verdict: str, words: str = "", collection: str = "content") -> str:
    """Wait for a verdict whose reason has these words; the reason."""
    last: dict[str, tuple[str, str]] = {}

    def seen() -> str:
        last.update(verdicts(deployment))
        found, reason = last[collection]
        return reason if found == verdict and words in reason else ""

    seconds = BACK if verdict == "FRESH" else SEEN
    started = time.monotonic()
    try:
        reason = until(seen, seconds, "")
    except AssertionError:
        raise AssertionError(f"not {verdict} with {words!r} within {seconds} s, but {last}") from None
    print(f"{verdict:10} after {time.monotonic() - started:4.1f} s: {reason}")
    return reason


def start_monitor(deployment: Deployment, **variables: str) -> WorkerProcess:
    return deployment.start_worker(
        "monitor", module="tests.fake_cli", arguments=("monitor", "--port", "0"), **variables
    )


def start_worker(deployment: Deployment, slot: str) -> WorkerProcess:
    """Its own clock is an hour ahead: nothing here may look at it."""
    return deployment.start_worker(slot, FAKE_CLOCK_SECONDS="3600", **FAKE)  # type: ignore[arg-type]


@contextlib.contextmanager
def behind_a_proxy(deployment: Deployment) -> Iterator[tuple[Proxy, dict[str, str]]]:
    """The source as the monitor alone reaches it."""
    dsn = conninfo_to_dict(deployment.source_dsn)
    with Proxy(int(str(dsn["port"]))) as proxy:
        yield proxy, {"UPWELL_SOURCE_DSN": make_conninfo(deployment.source_dsn, port=proxy.port)}


def test_every_fault_of_the_table(line: Deployment) -> None:
    with behind_a_proxy(line) as (proxy, reached):
        monitor = start_monitor(line, **reached)
        sees(line, "INCOMPLETE", "first load")
        worker = start_worker(line, "w1")
        for collection in ("content", "customers"):
            sees(line, "FRESH", collection=collection)
        with Oracle(line, THRESHOLD) as oracle:
            second = start_monitor(line)  # two at once are harmless
            _poison(line)
            worker = _workers_dead(line, worker)
            assert second.stop() == 0, second.tail()
            _connector_failed(line)
            assert "is restarted: it FAILED" in monitor.log.read_text()
            _source_not_reached(line, proxy)
            worker = _replication_stuck(line, worker)
            _page(line, monitor)
        assert monitor.process.poll() is None, monitor.tail()
    print(f"{oracle.samples} samples, {len(oracle.changes)} changes")
    print(f"truth ahead of the watermark: {oracle.least} to {oracle.most} s")
    assert not oracle.wrong, oracle.wrong[:3]
    assert oracle.samples > 200
    assert monitor.stop() == 0, monitor.tail()
    assert worker.stop() == 0, worker.tail()


def _poison(line: Deployment) -> None:
    """One record that nobody can read makes its table stale, and no other."""
    producer = Producer({"bootstrap.servers": line.environment["UPWELL_KAFKA_BOOTSTRAP_SERVERS"]})
    producer.produce(f"{line.name}_1.shop.customers", value=b"no Avro", partition=0)
    assert producer.flush(10) == 0
    sees(line, "STALE", "1 dead letters", "customers")
    assert verdicts(line)["content"][0] == "FRESH"
    with line.sink() as sink:
        letter = one(sink, "SELECT id FROM upwell.dead_letter WHERE closed_at IS NULL")
    line.upwell("dead-letters", "waive", str(letter), "--reason", "a test")
    sees(line, "FRESH", collection="customers")


def _workers_dead(line: Deployment, worker: WorkerProcess) -> WorkerProcess:
    worker.kill()
    sees(line, "STALE", "no worker runs")
    sees(line, "STALE", "no worker runs", "customers")
    again = start_worker(line, "w1")
    sees(line, "FRESH")
    return again


def _connector_failed(line: Deployment) -> None:
    """Its config is changed under us; the monitor restarts it in vain, and says why."""
    url = f"{line.environment['UPWELL_CONNECT_URL']}/connectors/upwell-{line.name}/config"
    config = requests.get(url, timeout=30).json()
    requests.put(url, json={**config, "publication.name": "gone"}, timeout=60).raise_for_status()
    sees(line, "STALE", "FAILED")
    line.upwell("connector", "apply", seconds=120)
    sees(line, "FRESH")


def _source_not_reached(line: Deployment, proxy: Proxy) -> None:
    """Only the monitor cannot reach it, and it hangs: everything else goes on."""
    proxy.freeze()
    sees(line, "UNKNOWN", "cannot reach the source")
    proxy.thaw()
    sees(line, "FRESH")


def _replication_stuck(line: Deployment, worker: WorkerProcess) -> WorkerProcess:
    """Heartbeats beat, and the canary does not come: its table is not published. Then changes are lost for good."""
    with line.source() as source:
        publication = f"upwell_{line.name}"
        _alter(source, publication, "DROP")
        sees(line, "STALE", "replication stands still")
        _alter(source, publication, "ADD")
    reason = sees(line, "STALE", "GAP")
    assert "canary" in reason
    rebuild = threading.Thread(target=line.upwell, args=("connector", "rebuild"))
    rebuild.start()
    sees(line, "INCOMPLETE", "rebuild")
    rebuild.join()
    worker.process.wait(30)  # it ends with its lineage, and its slot is free only then
    again = start_worker(line, "w1")
    sees(line, "FRESH")
    return again


def _page(line: Deployment, monitor: WorkerProcess) -> None:
    """What the monitor serves is what the sink says."""
    with line.sink() as sink:
        url = one(sink, "SELECT url FROM upwell.monitor WHERE pid = %s", monitor.process.pid)
    assert requests.get(f"{url}readyz", timeout=10).status_code == 200
    live = requests.get(f"{url}api/v1/live", timeout=10).json()
    assert live["collections"]["content"]["verdict"] == "FRESH"
    assert live["lineage"] == 2
    assert live["canary"]["number"] > 1
    report = until(lambda: requests.get(f"{url}api/v1/freshness", timeout=10).json(), 10, "the report")
    assert report["collections"]["content"]["verdict"] == "FRESH"
    metrics = requests.get(f"{url}metrics", timeout=10).text
    assert 'upwell_verdict{collection="content",state="FRESH"} 1.0' in metrics
    assert "FRESH" in requests.get(url, timeout=10).text
    asked = line.upwell("report", "--json")
    assert json.loads(asked.stdout)["collections"]["content"]["slo"]["good"] > 0


def _alter(source: psycopg.Connection[Any], publication: str, word: str) -> None:
    source.execute(f"ALTER PUBLICATION {publication} {word} TABLE upwell.canary".encode())
