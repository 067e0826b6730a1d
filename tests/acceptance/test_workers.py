"""Several workers: supervised, added, killed and removed under load; and stopped while a neighbour is away."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra import stack as local_stack
from tests.acceptance.plain import FAKE, all_searchable, fake_encode, one
from tests.deployment import Deployment, WorkerProcess, until
from tests.fixtures.proxy import Proxy
from tests.oracle import compare

pytestmark = pytest.mark.acceptance

SUPERVISED = {"module": "tests.fake_worker", "arguments": ("--processes", "2")}
CHANGES = (
    "INSERT INTO shop.content VALUES (%(key)s, %(text)s, %(text)s, '{{x}}', 'en', true, 1, now()) "
    "ON CONFLICT (id) DO UPDATE SET body = excluded.body",
    "UPDATE shop.content SET body = %(text)s WHERE id = %(key)s",
    "UPDATE shop.content SET price = price + 1 WHERE id = %(key)s",
    "DELETE FROM shop.content WHERE id = %(key)s",
)
AUDITED = """
SELECT p.topic, p.partition, p.next_offset,
       (SELECT coalesce(sum(count), 0) FROM upwell.audit a
         WHERE a.topic = p.topic AND a.partition = p.partition)
  FROM upwell.position p
"""


class Writer:
    """Changes rows, reproducibly, until told to stop."""

    def __init__(self, deployment: Deployment, seed: int, pause_seconds: float = 0.005) -> None:
        self._pause_seconds = pause_seconds
        self._deployment, self._random = deployment, random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.written = 0

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        with self._deployment.source() as source:
            while not self._stop.is_set():
                values = {"key": self._random.randint(1, 80), "text": f"text {self._random.random()}"}
                source.execute(self._random.choice(CHANGES).replace("{{", "{").replace("}}", "}"), values)
                self.written += 1
                time.sleep(self._pause_seconds)


def workers(sink: psycopg.Connection[Any]) -> dict[str, int]:
    """Process id by slot, of every worker that was ever started."""
    return dict(sink.execute("SELECT slot, pid FROM upwell.worker").fetchall())


def says(sink: psycopg.Connection[Any], slot: str, path: str) -> tuple[int, str]:
    """Status and text of a page of a worker; 0 where it does not answer."""
    url = one(sink, "SELECT url FROM upwell.worker WHERE slot = %s", slot)
    try:
        answer = requests.get(f"{url}{path}", timeout=5)
    except requests.RequestException as error:
        return 0, str(error)
    return answer.status_code, answer.text


def is_ready(sink: psycopg.Connection[Any], slot: str) -> bool:
    return says(sink, slot, "/readyz") == (200, "ok\n")


def embedding(worker: WorkerProcess, times: int) -> bool:
    return worker.log.read_text(errors="replace").count('"event": "embedding"') >= times


@pytest.mark.long
def test_adding_killing_and_removing_workers_under_load_loses_and_repeats_nothing(
    shared: Deployment,
) -> None:
    supervised = shared.start_worker(**SUPERVISED)  # type: ignore[arg-type]
    until(lambda: embedding(supervised, 2), 60, "two workers")
    with shared.sink() as sink, Writer(shared, seed=4) as writer:
        before = workers(sink)
        assert len(before) == 2
        slot, pid = sorted(before.items())[0]
        os.kill(pid, signal.SIGKILL)
        until(lambda: workers(sink)[slot] != pid, 30, "the killed one's successor")
        added = shared.start_worker("added", **FAKE)  # type: ignore[arg-type]
        until(lambda: embedding(added, 1), 60, "a third worker")
        until(lambda: writer.written > 600, 60, "changes")
        assert added.stop() == 0, added.tail()
        until(lambda: writer.written > 900, 60, "more changes")
    until(lambda: all_searchable(shared), 90, "everything")
    # The removed one's partitions are given away after its session only, so as many rows are not yet the same rows.
    until(
        lambda: not compare(shared.source_dsn, shared.sink_dsn, "content", fake_encode),
        60,
        "the sink is what the source is",
    )
    with shared.sink() as sink:
        for topic, partition, taken_in, audited in sink.execute(AUDITED).fetchall():
            assert taken_in == audited, f"{topic}/{partition}: each offset has one outcome"
        for slot in before:
            until(partial(is_ready, sink, slot), 30, f"{slot} ready")
            assert says(sink, slot, "/healthz") == (200, "ok\n")
        _, text = says(sink, max(before), "/metrics")
        assert 'upwell_outcomes_total{collection="content",outcome="applied"}' in text
        assert 'upwell_encode_seconds_count{collection="content"}' in text
    assert supervised.stop() == 0, supervised.tail()
    assert '"signal": "SIGKILL"' in supervised.log.read_text()


def test_a_halt_ends_the_supervisor_with_2(shared: Deployment) -> None:
    spec = shared.directory / "upwell.toml"
    before = spec.read_text()
    spec.write_text(before.replace("{{ title }}", "{{ title }}!"))
    supervised = shared.start_worker(**SUPERVISED)  # type: ignore[arg-type]
    assert supervised.process.wait(60) == 2
    spec.write_text(before)
    tail = supervised.tail()
    assert "template, model or chunking of content are not those" in tail
    assert "halted, its reason is in the line above" in tail
    assert "Traceback" not in tail


@pytest.fixture
def proxied(shared: Deployment) -> Iterator[dict[str, Proxy]]:
    """Sink and registry behind proxies of their own."""
    sink = conninfo_to_dict(shared.sink_dsn)
    registry = urlsplit(shared.environment["UPWELL_REGISTRY_URL"])
    assert registry.port is not None
    with Proxy(int(str(sink["port"]))) as sink_proxy, Proxy(registry.port) as registry_proxy:
        yield {"sink": sink_proxy, "registry": registry_proxy}


@pytest.mark.parametrize(
    "away",
    ["sink", pytest.param("registry", marks=pytest.mark.long), pytest.param("kafka", marks=pytest.mark.long)],
)
def test_sigterm_ends_workers_in_seconds_while_a_neighbour_is_silent(
    shared: Deployment, proxied: dict[str, Proxy], away: str
) -> None:
    registry = urlsplit(shared.environment["UPWELL_REGISTRY_URL"])
    if away == "registry":
        proxied[away].freeze()  # before a worker has the schemas
    supervised = shared.start_worker(
        away,  # a proxy that was frozen keeps sessions of workers that have ended, and their slots
        **SUPERVISED,  # type: ignore[arg-type]
        UPWELL_SINK_DSN=make_conninfo(shared.sink_dsn, host="127.0.0.1", port=proxied["sink"].port),
        UPWELL_REGISTRY_URL=registry._replace(netloc=f"127.0.0.1:{proxied['registry'].port}").geturl(),
    )
    until(lambda: embedding(supervised, 2), 60, "two workers")
    if away != "registry":
        until(lambda: all_searchable(shared), 60, "the first rows")
    kafka = next(each.pid for each in local_stack.status(shared.stack.home) if each.name == "kafka")
    assert kafka is not None
    try:
        if away == "kafka":
            os.kill(kafka, signal.SIGSTOP)
        elif away == "sink":
            proxied[away].freeze()
        with shared.source() as source:
            source.execute("UPDATE shop.content SET body = %s", [f"while {away} is silent"])
        time.sleep(2)
        started = time.monotonic()
        assert supervised.stop(seconds=25) == 0
        print(f"{away} silent: stopped in {time.monotonic() - started:.1f} s")
        assert "worker killed" not in supervised.log.read_text()
    finally:
        os.kill(kafka, signal.SIGCONT)
    if away != "kafka":
        proxied[away].thaw()
    shared.start_worker(**FAKE)  # type: ignore[arg-type]
    said = "SELECT count(*) FROM upwell.content WHERE position(%s IN chunk_text) = 0"
    with shared.sink() as connection:
        until(
            lambda: all_searchable(shared) and one(connection, said, f"while {away} is silent") == 0,
            60,
            "the update",
        )
