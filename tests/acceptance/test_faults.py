"""kill -9, a load with a slow model, a delete while its text is encoded: on real components, with a fake model."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from tests.acceptance.plain import FAKE, ROWS, TABLES, all_searchable, fake_encode, one
from tests.acceptance.test_workers import AUDITED
from tests.deployment import Deployment, until
from tests.oracle import compare

pytestmark = pytest.mark.acceptance

#: Several times what may wait in Kafka at once.
LOADED = 20_000


def test_live_changes_and_deletes_do_not_wait_behind_a_load(deployment: Deployment) -> None:
    """From the first rows on, while the table is still being read, and then while its texts wait for a slow model.

    An older transaction holds the load back until the worker is there.
    """
    with (
        deployment.source() as source,
        deployment.sink() as sink,
        deployment.source() as older,
        ThreadPoolExecutor(1) as pool,
    ):
        source.execute(TABLES)
        source.execute(ROWS, (1, LOADED))
        with older.transaction():
            older.execute("SELECT pg_current_xact_id()")
            deployment.upwell("migrate")
            applying = pool.submit(deployment.upwell, "connector", "apply", seconds=180)
            until(
                lambda: one(sink, "SELECT count(*) FROM upwell.topic WHERE collection IS NOT NULL") == 2,
                60,
                "topics",
            )
            worker = deployment.start_worker(FAKE_SECONDS_PER_TEXT="0.02", **FAKE)  # type: ignore[arg-type]
            until(lambda: "embedding" in worker.tail(), 60, "the worker")
        taken_in_meanwhile = edited(source, sink, 3000, "read")
        edited(source, sink, LOADED, "embedded")
        left = one(sink, "SELECT count(*) FROM upwell.pending")
        applying.result()
    assert taken_in_meanwhile < 5000
    assert left > LOADED / 2


def edited(source: psycopg.Connection[Any], sink: psycopg.Connection[Any], rows: int, phase: str) -> int:
    """Once so many rows are taken in: delete one that is searchable, and change another.

    Returns how many rows were taken in until the delete had its effect.
    """
    taken_in = "SELECT count(*) FROM upwell.record_content"
    until(lambda: one(sink, taken_in) >= rows, 120, f"{rows} rows")
    query = "SELECT (array_agg(id ORDER BY id))[:2] FROM upwell.content HAVING count(*) > 1"
    first, second = until(lambda: one(sink, query), 60, "two searchable rows")
    found = "SELECT count(*) FROM upwell.content WHERE id = %s"
    before, started = one(sink, taken_in), time.monotonic()
    source.execute("DELETE FROM shop.content WHERE id = %s", [first])
    until(lambda: one(sink, found, first) == 0, 60, "the delete")
    deleted, meanwhile = time.monotonic() - started, one(sink, taken_in) - before
    started = time.monotonic()
    source.execute("UPDATE shop.content SET body = 'urgent news' WHERE id = %s", [second])
    found += " AND position('urgent' IN chunk_text) > 0"
    until(lambda: one(sink, found, second) == 1, 60, "the update")
    print(f"while being {phase}: delete {deleted:.2f} s, update {time.monotonic() - started:.2f} s")
    return int(meanwhile)


@pytest.mark.long
def test_kill_9_in_the_middle_of_a_batch_loses_and_repeats_nothing(shared: Deployment) -> None:
    worker = shared.start_worker(FAKE_SECONDS_PER_TEXT="0.005", **FAKE)  # type: ignore[arg-type]
    until(lambda: all_searchable(shared), 60, "the first rows")
    with shared.source() as source, shared.sink() as sink:
        source.execute(ROWS, (101, 900))
        source.execute("DELETE FROM shop.content WHERE id BETWEEN 5 AND 15")
        until(lambda: one(sink, "SELECT count(*) FROM upwell.embedding_content_g1") > 150, 60, "some of it")
        worker.kill()
        source.execute(
            "UPDATE shop.content SET body = 'changed while it was down' WHERE id BETWEEN 20 AND 30"
        )
        source.execute("DELETE FROM shop.content WHERE id BETWEEN 101 AND 110")
        killed = shared.start_worker(FAKE_SECONDS_PER_TEXT="0.005", **FAKE)  # type: ignore[arg-type]
        until(lambda: one(sink, "SELECT count(*) FROM upwell.embedding_content_g1") > 400, 60, "more of it")
        killed.kill()
    last = shared.start_worker(**FAKE)  # type: ignore[arg-type]
    until(lambda: all_searchable(shared), 90, "everything")
    difference = compare(shared.source_dsn, shared.sink_dsn, "content", fake_encode)
    assert not difference, difference
    assert last.stop() == 0, last.tail()


def test_a_row_deleted_while_it_is_being_encoded_leaves_nothing(shared: Deployment, tmp_path: Path) -> None:
    """H13 on real components: the embedder holds the text, the delete commits, the embedder goes on."""
    hold = tmp_path / "hold"
    worker = shared.start_worker(FAKE_HOLD=str(hold), **FAKE)  # type: ignore[arg-type]
    until(lambda: all_searchable(shared), 60, "the first rows")
    hold.touch()
    with shared.source() as source, shared.sink() as sink:
        source.execute(ROWS, (200, 200))
        until(
            lambda: (
                one(sink, "SELECT count(*) FROM upwell.pending WHERE key = '[200]' AND token IS NOT NULL")
                == 1
            ),
            30,
            "the claim",
        )
        source.execute("DELETE FROM shop.content WHERE id = 200")
        until(
            lambda: one(sink, "SELECT count(*) FROM upwell.pending WHERE key = '[200]'") == 0,
            30,
            "the delete",
        )
        hold.unlink()
        source.execute(ROWS, (201, 201))
        until(
            lambda: one(sink, "SELECT count(*) FROM upwell.content WHERE id = 201") == 1, 30, "the next row"
        )
        assert one(sink, "SELECT count(*) FROM upwell.embedding_content_g1 WHERE key = '[200]'") == 0
        assert one(sink, "SELECT _deleted FROM upwell.record_content WHERE _key = '[200]'") is True
    assert worker.stop() == 0, worker.tail()


def test_truncate_and_reinsert(shared: Deployment) -> None:
    """H6, H8: snapshot rows and streamed rows of every partition go with one truncate; later rows stay."""
    shared.start_worker(**FAKE)  # type: ignore[arg-type]
    until(lambda: all_searchable(shared), 60, "the first rows")
    with shared.source() as source, shared.sink() as sink:
        source.execute(ROWS, (300, 320))
        with source.transaction():
            source.execute("TRUNCATE shop.content")
            source.execute(ROWS, (310, 312))
        until(
            lambda: one(sink, "SELECT array_agg(id ORDER BY id) FROM upwell.content") == [310, 311, 312],
            30,
            "three",
        )
        for topic, partition, taken_in, audited in sink.execute(AUDITED).fetchall():
            assert taken_in == audited, f"{topic}/{partition}: each offset has one outcome"
    difference = compare(shared.source_dsn, shared.sink_dsn, "content", fake_encode)
    assert not difference, difference


def test_shift_in_one_statement(shared: Deployment) -> None:
    """H9: every key of a shift is deleted and created in one transaction; the source has them all but the first."""
    shared.start_worker(**FAKE)  # type: ignore[arg-type]
    until(lambda: all_searchable(shared), 60, "the first rows")
    with shared.source() as source:
        source.execute("ALTER TABLE shop.content DROP CONSTRAINT content_pkey")
        source.execute("ALTER TABLE shop.content ADD PRIMARY KEY (id) DEFERRABLE INITIALLY IMMEDIATE")
        source.execute("ALTER TABLE shop.content REPLICA IDENTITY FULL")
        source.execute("UPDATE shop.content SET id = id + 1")
        with source.transaction():
            source.execute("UPDATE shop.content SET id = 1000 WHERE id = 10")
            source.execute("INSERT INTO shop.content VALUES (2000, 'x', 'y', '{}', 'en', true, 1, now())")
            source.execute("UPDATE shop.content SET id = 2001 WHERE id = 2000")
    until(lambda: all_searchable(shared), 60, "everything")
    until(
        lambda: not compare(shared.source_dsn, shared.sink_dsn, "content", fake_encode),
        30,
        "the sink equal to the source",
    )


def test_vectors_of_the_fake_are_what_the_oracle_recomputes() -> None:
    assert np.allclose(np.linalg.norm(fake_encode(["a", "b"]), axis=1), 1)
