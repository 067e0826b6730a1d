"""Workers that are killed, killed while the group rebalances, killed by a text, hang, or come back late; and a sink
that is restored from a backup under them. Each worker's clock is an hour behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.stack.postgres import programs
from tests.acceptance.plain import FAKE, ROWS, all_searchable, fake_encode, one
from tests.acceptance.test_workers import AUDITED, SUPERVISED, Writer, embedding, workers
from tests.deployment import Deployment, WorkerProcess, until
from tests.oracle import compare

pytestmark = [pytest.mark.acceptance, pytest.mark.long]

BEHIND: Final = {"FAKE_CLOCK_SECONDS": "-3600"}
TOKENS: Final = "SELECT token::text FROM upwell.pending WHERE slot = %s AND token IS NOT NULL"
HELD: Final = "SELECT count(*) FROM upwell.pending WHERE token::text = ANY(%s)"
TAKEN_IN: Final = "SELECT count(*) FROM upwell.record_content WHERE _row ->> 'body' = %s"

#: Partitions that somebody moves on.
MOVING: Final = """
SELECT count(*) FROM upwell.position
 WHERE topic LIKE '%%.shop.content' AND updated_at > clock_timestamp() - interval '1 s'
"""
#: Workers' transactions that wait for their client for so many seconds; in the middle of a pipeline one is active.
SESSIONS: Final = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'upwell worker'
   AND (state = 'idle in transaction' OR state = 'active' AND wait_event = 'ClientRead')
   AND state_change < clock_timestamp() - %s * interval '1 s'
"""


def is_equal(deployment: Deployment) -> bool:
    return not compare(deployment.source_dsn, deployment.sink_dsn, "content", fake_encode)


def within(seconds: float) -> float:
    """A deadline for a machine that is not overloaded: a worker's start is two seconds of work."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def start(deployment: Deployment, **variables: str) -> WorkerProcess:
    """Two supervised workers that are at work."""
    supervised = deployment.start_worker(**SUPERVISED, **BEHIND, **variables)  # type: ignore[arg-type]
    ready = lambda: embedding(supervised, 2) and all_searchable(deployment)  # noqa: E731
    until(ready, within(60), "two workers")
    return supervised


def test_workers_that_are_killed_or_come_back_late(prepared: Deployment, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    supervised = start(prepared, FAKE_HOLD=str(hold))
    with prepared.sink() as sink, prepared.source() as source:
        _killed(source, sink, hold)
        _stopped_for_a_while(prepared, sink)
        _accounted(sink)
    assert supervised.stop() == 0, supervised.tail()
    assert '"signal": "SIGKILL"' in supervised.log.read_text(errors="replace")


def test_a_storm_of_workers_and_texts_that_end_them(prepared: Deployment) -> None:
    supervised = start(prepared, UPWELL_WORKER_EMBED_ATTEMPTS="2", UPWELL_WORKER_ENCODE_DEADLINE_SECONDS="5")
    with prepared.sink() as sink, prepared.source() as source:
        _killed_while_the_group_rebalances(prepared)
        _texts_that_hang_or_kill(source, sink)
        skew = "SELECT max(abs(extract(epoch FROM clock_timestamp() - at))) FROM upwell.audit"
        assert one(sink, skew) < 1800, "no worker's clock is in what it writes"
        _accounted(sink)
    assert supervised.stop() == 0, supervised.tail()
    log = supervised.log.read_text(errors="replace")
    assert "the model has not answered for 5 s: this worker ends and starts again" in log
    assert '"exit_code": 1' in log
    assert '"signal": "SIGKILL"' in log


def _accounted(sink: psycopg.Connection[Any]) -> None:
    for topic, partition, taken_in, audited in sink.execute(AUDITED).fetchall():
        assert taken_in == audited, f"{topic}/{partition}: each offset has one outcome"


def _killed(source: psycopg.Connection[Any], sink: psycopg.Connection[Any], hold: Path) -> None:
    """kill -9 of a supervised worker that has claims: they are free again, and its partitions taken in, in seconds."""
    hold.touch()
    source.execute("UPDATE shop.content SET body = 'before'")
    slot = until(
        lambda: one(sink, "SELECT slot FROM upwell.pending WHERE token IS NOT NULL"), within(30), "a claim"
    )
    tokens = [row[0] for row in sink.execute(TOKENS, [slot])]
    pid = workers(sink)[slot]
    until(lambda: one(sink, TAKEN_IN, "before") == 50, within(30), "all of it taken in")
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    source.execute("UPDATE shop.content SET body = 'after'")
    until(lambda: one(sink, HELD, tokens) == 0, within(10), "its claims are free")
    freed = time.monotonic() - killed
    until(lambda: one(sink, TAKEN_IN, "after") == 50, within(10) - freed, "all partitions are taken in")
    print(
        f"kill -9: claims free after {freed:.1f} s, partitions taken in after {time.monotonic() - killed:.1f} s"
    )
    hold.unlink()
    waiting = "SELECT count(*) FROM upwell.content WHERE position('after' IN chunk_text) = 0"
    until(lambda: one(sink, waiting) == 0, within(30), "all is embedded")


def _stopped_for_a_while(deployment: Deployment, sink: psycopg.Connection[Any]) -> None:
    """Two owners: one freezes under load, loses its partitions to the other, and finishes late."""
    slot, pid = max(workers(sink).items())
    with Writer(deployment, seed=11) as writer:
        until(lambda: writer.written > 50, within(30), "changes")
        until(
            lambda: _frozen(sink, pid),
            30,
            "it is frozen outside of a transaction, which would keep its locks",
        )
        try:
            until(lambda: one(sink, MOVING) == 4, 90, f"the other has what {slot} had")
        finally:
            os.kill(pid, signal.SIGCONT)
        late = writer.written
        until(lambda: writer.written > late + 100, within(30), "more changes")
    until(lambda: all_searchable(deployment), within(90), "everything")
    until(lambda: is_equal(deployment), within(30), "the sink is what the source is")


def _frozen(sink: psycopg.Connection[Any], pid: int) -> bool:
    os.kill(pid, signal.SIGSTOP)
    until(
        lambda: one(sink, SESSIONS, 0.0) == one(sink, SESSIONS, 1.0),
        30,
        "the others' transactions have ended",
    )
    if one(sink, SESSIONS, 1.0) == 0:
        return True
    os.kill(pid, signal.SIGCONT)
    return False


def _killed_while_the_group_rebalances(deployment: Deployment) -> None:
    """A storm: each joins, and is killed as soon as the group hears of it."""
    with Writer(deployment, seed=12):
        for number in range(2):
            added = deployment.start_worker(f"storm{number}", **FAKE, **BEHIND)  # type: ignore[arg-type]
            until(lambda added=added: "worker starting" in added.log.read_text(), within(60), "it joins")  # type: ignore[misc]
            added.kill()
    until(lambda: all_searchable(deployment), within(90), "everything")
    until(lambda: is_equal(deployment), within(60), "the sink is what the source is")


def _texts_that_hang_or_kill(source: psycopg.Connection[Any], sink: psycopg.Connection[Any]) -> None:
    """Both are dead-lettered; the others, of the same batches, are searchable."""
    with source.transaction():
        source.execute(ROWS, (200, 209))
        source.execute("UPDATE shop.content SET body = 'hang the model' WHERE id = 203")
        source.execute("UPDATE shop.content SET body = 'kill the worker' WHERE id = 206")
    query = "SELECT array_agg(key ORDER BY key) FROM upwell.dead_letter WHERE error_class = 'NeverEmbedded'"
    until(lambda: one(sink, query) == ["[203]", "[206]"], within(60), "both are set aside")
    found = "SELECT count(*) FROM upwell.content WHERE id BETWEEN 200 AND 209 AND NOT is_stale"
    until(lambda: one(sink, found) == 8, within(30), "the others are searchable")


def test_a_sink_restored_from_a_backup_under_running_workers(prepared: Deployment, tmp_path: Path) -> None:
    """H21: by pg_dump and pg_restore, and then in its place at once. Nothing arrives afterwards."""
    supervised = start(prepared)
    backup = tmp_path / "sink.dump"
    _run("pg_dump", "-Fc", "-f", str(backup), prepared.sink_dsn)
    with Writer(prepared, seed=13) as writer:
        until(lambda: writer.written > 200, within(60), "changes since the backup")
    until(lambda: all_searchable(prepared) and is_equal(prepared), within(60), "they are taken in")
    taken_in = positions(prepared)
    before = _pids(prepared)
    name = str(conninfo_to_dict(prepared.sink_dsn)["dbname"])
    admin = make_conninfo(prepared.sink_dsn, dbname="postgres")
    with psycopg.connect(admin, autocommit=True) as server:
        restored, old = sql.Identifier(f"{name}_restored"), sql.Identifier(f"{name}_old")
        server.execute(sql.SQL("CREATE DATABASE {}").format(restored))
        _run("pg_restore", "-d", make_conninfo(prepared.sink_dsn, dbname=f"{name}_restored"), str(backup))
        there = sql.Identifier(name)
        server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(there))
        server.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        server.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(there, old))
        server.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(restored, there))
        assert sum(positions(prepared).values()) < sum(taken_in.values())
        started = time.monotonic()
        until(
            lambda: positions(prepared) == taken_in,
            within(60),
            "what came since the backup is taken in again",
        )
        print(f"restored sink: taken in again after {time.monotonic() - started:.1f} s")
        until(
            lambda: all_searchable(prepared) and is_equal(prepared),
            within(60),
            "the sink is what the source is",
        )
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(old))
    assert set(before.items()) & set(_pids(prepared).items()) == set(), "each has started again"
    log = supervised.log.read_text(errors="replace")
    assert "a restored sink; a restart begins at the sink's" in log
    with prepared.sink() as sink:
        _accounted(sink)
    assert supervised.stop() == 0, supervised.tail()


def positions(deployment: Deployment) -> Mapping[tuple[str, int], int]:
    with deployment.sink() as sink:
        rows = sink.execute(
            "SELECT topic, partition, next_offset FROM upwell.position WHERE topic LIKE '%%.shop.%%'"
        )
        return {(topic, partition): offset for topic, partition, offset in rows}


def _pids(deployment: Deployment) -> dict[str, int]:
    with deployment.sink() as sink:
        return workers(sink)


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [str(programs() / program), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
