"""The sweep removes what a whole scan did not bring again, and nothing else; an ended lineage takes nothing in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, LiteralString

import psycopg
import pytest

from connectors.kafka import TopicFacts
from connectors.postgres.capture_state import CaptureState
from connectors.postgres.removal import SQL as SINK
from connectors.postgres.sweep import Scan, Sweep
from schemas.change import TopicPartition
from schemas.errors import DeploymentChanged
from schemas.sink import Lane
from tests.contracts.sinks import PostgresSink, Sink
from tests.contracts.steps import AT, change, embed_all, take_in, undecodable
from tests.deployment import until

SCANNED = Scan("content", 2, {"0": 0})


@pytest.fixture
def connection(postgres: PostgresSink) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.dsn, autocommit=True) as found:
        yield found


def _one(connection: psycopg.Connection[Any], query: LiteralString) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


async def _begin(sink: Sink) -> None:
    """Lineage 2 begins, as `connector rebuild` has it begin."""
    if isinstance(sink, PostgresSink):
        with CaptureState.open(sink.dsn) as state:
            state.begin_lineage(1, "shop_1", {})
            state.begin_lineage(2, "shop_2", {"shop_2.shop.content": ("content", TopicFacts("id", 1))})
    else:
        sink.store.lineage = 2  # type: ignore[attr-defined]


async def test_nothing_of_an_ended_lineage_is_taken_in(sink: Sink) -> None:
    """H10, H11."""
    await take_in(sink.store, change(1, 5, "before"), upto=6)
    await _begin(sink)
    with pytest.raises(DeploymentChanged):
        await take_in(sink.store, change(2, 6, "too late"), expected=6, upto=7)
    assert await sink.alive() == ["[1]"]
    assert await sink.store.positions([AT.topic]) == {AT: 6}


async def test_a_lineage_begins_after_the_intake_that_runs(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    """Else an intake that read the old lineage as the newest could commit afterwards."""
    with ThreadPoolExecutor(1) as thread, psycopg.connect(postgres.dsn) as intake:
        intake.execute(SINK["lock_collection"], {"collection": "content"})
        begun = thread.submit(asyncio.run, _begin(postgres))
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: _one(connection, query) == 1, 10, "it waits for the intake")
        assert _one(connection, "SELECT coalesce(max(number), 0) FROM upwell.lineage") < 2
        intake.commit()
        begun.result(10)
    assert _one(connection, "SELECT max(number) FROM upwell.lineage") == 2


async def test_a_lineage_begins_once_and_every_table_is_to_be_read_again(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("UPDATE upwell.collection SET load_state = 'complete'")
    await _begin(postgres)
    with CaptureState.open(postgres.dsn) as state:
        assert all(load.rebuilding for load in state.loads(["content", "customers"]).values())
        state.set_load("content", "loading", {"signal": "load-1"})
        state.begin_lineage(2, "shop_2", {})
        assert not state.loads(["content"])["content"].rebuilding
        assert state.topics(2) == {"shop_2.shop.content": TopicFacts("id", 1)}


async def test_what_the_scan_did_not_bring_is_removed_with_all_that_belongs_to_it(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    store = postgres.store
    await take_in(store, *(change(key, key, f"text {key}") for key in range(1, 6)))
    await embed_all(store)
    await take_in(store, change(4, 10, "pending"), change(5, 11, None))
    await take_in(store, change(1, 0, "text 1", lineage=2, embed="keep"))
    sweep = Sweep(connection, SCANNED)
    assert sweep.unseen() == 3
    assert sweep.run() == 3
    assert sweep.unseen() == sweep.run() == 0
    assert await postgres.alive() == ["[1]"]
    assert await postgres.chunks("[1]") == ["text 1"]
    assert [await postgres.chunks(f"[{key}]") for key in (2, 3, 4)] == [[], [], []]
    assert await postgres.pending("[4]") is None
    swept = await postgres.rows(
        "SELECT key FROM upwell.audit WHERE detail ->> 'reason' = 'swept: not in the source' ORDER BY 1"
    )
    assert swept == [("[2]",), ("[3]",), ("[4]",)]


async def test_within_a_lineage_only_snapshot_rows_from_before_the_scan_are_unseen(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    """H24. What streaming wrote stays, though the scan's row of it was ignored (H5): its deletion is streamed, too."""
    other = TopicPartition(AT.topic, 1)
    await take_in(postgres.store, change(1, 5, "streamed", lsn=100), change(2, 5, "row", lane=Lane.BACKFILL))
    await take_in(postgres.store, change(3, 20, "row of the scan", lane=Lane.BACKFILL))
    await take_in(postgres.store, change(4, 5, "row of elsewhere", lane=Lane.BACKFILL, at=other))
    sweep = Sweep(connection, Scan("content", 1, {"0": 10, "1": 3}))
    assert sweep.run() == 1
    assert await postgres.alive() == ["[1]", "[3]", "[4]"]


async def test_h29_a_key_with_an_open_dead_letter_is_left_alone(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    await take_in(postgres.store, change(1, 1, "one"), change(2, 2, "two"))
    await take_in(postgres.store, letters=[undecodable(1, 4, lineage=2)])
    assert Sweep(connection, SCANNED).run() == 1
    assert await postgres.alive() == ["[1]"]
    assert await postgres.dead_letters() == [("intake", "[1]")]


async def test_h29_nothing_is_swept_while_a_dead_letter_may_be_any_keys(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    await take_in(postgres.store, change(1, 1, "one"))
    await take_in(postgres.store, letters=[undecodable(None, 4, lineage=2)])
    sweep = Sweep(connection, SCANNED)
    assert sweep.unknown_letters() == 1
    assert sweep.run() == 0
    assert await postgres.alive() == ["[1]"]


async def test_a_scan_of_an_ended_lineage_sweeps_nothing(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    await take_in(postgres.store, change(1, 1, "one", lane=Lane.BACKFILL))
    await _begin(postgres)
    assert Sweep(connection, Scan("content", 1, {"0": 10})).run() == 0
    assert await postgres.alive() == ["[1]"]


async def test_dead_letters_of_an_ended_lineage_are_over(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    await take_in(postgres.store, change(1, 1, "one"), letters=[undecodable(2, 2), undecodable(None, 3)])
    assert Sweep(connection, SCANNED).unknown_letters() == 0
    assert Sweep(connection, SCANNED).run() == 1
    assert await postgres.dead_letters() == []
    assert await postgres.rows("SELECT count(*) FROM upwell.dead_letter WHERE value_bytes IS NOT NULL") == [
        (0,)
    ]
