"""Guards that only two transactions at once can show, or a reading that another one falls into."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from connectors.postgres.freshness import FreshnessStore
from connectors.postgres.source import connect_source
from connectors.postgres.source_schema import migrate_source, unsettled
from connectors.postgres.store import PostgresStore
from connectors.postgres.sweep import Scan, Sweep
from schemas.errors import PositionConflict
from schemas.sink import IntakePlan, IntakeRequest, IntakeView, Lane, WriteOutcome
from tests.contracts.conftest import NUMBERS
from tests.contracts.server import Server
from tests.contracts.sinks import PostgresSink
from tests.contracts.steps import AT, change, claim, embed, take_in, when
from tests.deployment import until

ALONE = "SELECT pg_advisory_xact_lock(hashtext('upwell.collection'), hashtext('content'))"
SHARED = "SELECT pg_advisory_xact_lock_shared(hashtext('upwell.collection'), hashtext('content'))"


@pytest.fixture
def connection(postgres: PostgresSink) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.dsn, autocommit=True) as found:
        yield found


# -- positions


async def test_h21_nothing_is_decided_for_an_owner_whose_position_is_another(postgres: PostgresSink) -> None:
    await take_in(postgres.store, change(1, 999, "a"), upto=1000)
    await postgres.restore_positions(AT, 500)
    asked: list[IntakeView] = []

    def decide(view: IntakeView) -> IntakePlan:
        asked.append(view)
        return IntakePlan(positions={AT: 1100})

    with pytest.raises(PositionConflict, match="the sink's position is 500, this worker last saw 1000"):
        await postgres.store.intake(IntakeRequest("content", {AT: 1000}, []), decide)
    assert not asked


class Owners:
    """Two owners of the partition, who both begin at `expected`; the second begins while the first decides."""

    def __init__(self, sink: PostgresSink, expected: int | None) -> None:
        self.sink, self.request = sink, IntakeRequest("content", {AT: expected}, ["[1]", "[2]"])
        self.inside, self.go = threading.Event(), threading.Event()

    def _first(self, view: IntakeView) -> IntakePlan:
        self.inside.set()
        assert self.go.wait(20)
        return IntakePlan(writes=[change(1, 20, "first")], positions={AT: 21})

    async def _run(self, decide: Callable[[IntakeView], IntakePlan]) -> None:
        store = await PostgresStore.open(self.sink.dsn, writer="owner")
        try:
            await store.intake(self.request, decide)
        finally:
            await store.close()

    async def both(self) -> list[BaseException | None]:
        """What each of them ends with. The first goes on once the second waits for it, or is through."""
        first = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(self._run(self._first))))
        assert await asyncio.to_thread(self.inside.wait, 20)
        second = asyncio.create_task(
            self._run(lambda view: IntakePlan(writes=[change(2, 29, "second")], positions={AT: 30}))
        )
        with contextlib.suppress(AssertionError):
            await self.sink.waits(second)
        self.go.set()
        return list(await asyncio.gather(first, second, return_exceptions=True))


async def test_h21_of_two_owners_at_once_one_writes_nothing(postgres: PostgresSink) -> None:
    """After a slow rebalance the old owner still writes beside the new one."""
    await take_in(postgres.store, change(1, 9, "before"), upto=10)
    first, second = await Owners(postgres, 10).both()
    assert first is None
    assert isinstance(second, PositionConflict)
    assert await postgres.alive() == ["[1]"]
    assert await postgres.store.positions([AT.topic]) == {AT: 21}


async def test_h21_of_two_first_owners_at_once_one_writes_nothing(postgres: PostgresSink) -> None:
    """There is no row to lock yet: the second is through while the first still decides."""
    first, second = await Owners(postgres, None).both()
    assert isinstance(first, PositionConflict)
    assert second is None
    assert await postgres.alive() == ["[2]"]
    assert await postgres.store.positions([AT.topic]) == {AT: 30}


# -- locks


async def test_an_embedding_is_written_under_the_lock(postgres: PostgresSink) -> None:
    """A generation may be switched to, or dropped, under the vectors otherwise."""
    await take_in(postgres.store, change(1, 1, "a"))
    claims = await claim(postgres.store)
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as command:
        await command.execute(ALONE)
        writing = asyncio.create_task(embed(postgres.store, *claims))
        await postgres.waits(writing)
        await command.commit()
        assert await writing == [WriteOutcome.WRITTEN]


async def test_a_sweep_is_alone_on_the_collection(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    """What an intake writes meanwhile it would not see; and the intake would bring back what it removes."""
    await take_in(postgres.store, change(1, 1, "one", lane=Lane.BACKFILL))
    with ThreadPoolExecutor(1) as thread, psycopg.connect(postgres.dsn) as intake:
        intake.execute(SHARED)
        sweeping = thread.submit(Sweep(connection, Scan("content", 1, {"0": 10})).run)
        await postgres.waits(sweeping)
        assert await postgres.alive() == ["[1]"]
        intake.commit()
        assert sweeping.result(10) == 1


async def test_h20_an_embedding_that_waits_for_a_record_holds_no_pending_row(postgres: PostgresSink) -> None:
    """Whoever has the record takes the pending row next, and would wait for it in turn."""
    await take_in(postgres.store, change(1, 1, "a"))
    claims = await claim(postgres.store)
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as intake:
        await intake.execute("SELECT FROM upwell.record_content WHERE _key = '[1]' FOR UPDATE")
        writing = asyncio.create_task(embed(postgres.store, *claims))
        await postgres.waits(writing)
        await intake.execute("SET lock_timeout = '2s'")
        await intake.execute("SELECT FROM upwell.pending WHERE key = '[1]' FOR UPDATE")
        await intake.commit()
        assert await writing == [WriteOutcome.WRITTEN]


# -- leases and markers


@pytest.mark.parametrize("lane", ["timely", "late", "backfill"])
async def test_a_lease_holds_in_every_lane(postgres: PostgresSink, lane: str) -> None:
    made = {
        "timely": change(1, 1, "a", since=datetime.now(UTC)),
        "late": change(1, 1, "a", since=when(9)),
        "backfill": change(1, 1, "a", lane=Lane.BACKFILL),
    }
    await take_in(postgres.store, made[lane])
    assert len(await claim(postgres.store, slot="w1")) == 1
    assert await claim(postgres.store, slot="w2") == []
    await postgres.expire_leases()
    assert len(await claim(postgres.store, slot="w2")) == 1


async def test_h13_a_marker_is_never_embedded(postgres: PostgresSink) -> None:
    """H13, also if whoever made the marker has left the pending row."""
    await take_in(postgres.store, change(1, 1, "a"))
    claims = await claim(postgres.store)
    await postgres.rows("UPDATE upwell.record_content SET _deleted = true, _row = NULL")
    assert await embed(postgres.store, *claims) == [WriteOutcome.DISCARDED]
    assert await postgres.chunks("[1]") == []


async def test_h13_a_marker_is_never_claimed(postgres: PostgresSink) -> None:
    """H13: a pending row without its record goes."""
    await take_in(postgres.store, change(1, 1, "a"), change(2, 2, "b"))
    await postgres.rows("UPDATE upwell.record_content SET _deleted = true, _row = NULL WHERE _key = '[1]'")
    assert [each.key for each in await claim(postgres.store)] == ["[2]"]
    assert await postgres.pending("[1]") is None


# -- readings


async def test_h34_a_row_is_in_one_place_or_the_other(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    """H34: an intake commits after the pending rows were read, and before the positions are."""
    await take_in(postgres.store, upto=5)
    with ThreadPoolExecutor(1) as thread, psycopg.connect(postgres.dsn) as intake:
        intake.execute("LOCK TABLE upwell.position IN ACCESS EXCLUSIVE MODE")
        looking = thread.submit(FreshnessStore(connection).look, ["content"], [AT.topic])
        await postgres.waits(looking)
        intake.execute("UPDATE upwell.position SET next_offset = 6")
        intake.execute(
            'INSERT INTO upwell.pending (collection, generation, key, lineage, "offset", lane, deadline, '
            "pending_since, changes, taken_in_at) VALUES ('content', 1, '[1]', 1, 5, 'live', now(), now(), 1, now())"
        )
        intake.commit()
        seen = looking.result(10)
    taken_in, waiting = seen.positions[AT.topic][0], seen.collections["content"].pending
    assert (taken_in, waiting) in {(5, 0), (6, 1)}, "taken in, and not pending: it looks searchable"


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_h25_a_table_is_unsettled_while_an_older_transaction_is_open(server: Server) -> None:
    """H25: a transaction that wrote before the table was published commits a row that is in no event."""
    tables = "CREATE SCHEMA shop; CREATE TABLE shop.content (id bigint PRIMARY KEY)"
    with (
        server.source(f"older{next(NUMBERS)}", tables) as dsn,
        connect_source(dsn) as source,
        psycopg.connect(dsn) as older,
    ):
        older.execute("INSERT INTO shop.content VALUES (1)")
        migrate_source(source, "shop", ["shop.content"])
        assert unsettled(source, "shop", ["shop.content"]) == ["shop.content"]
        older.commit()
        until(lambda: not unsettled(source, "shop", ["shop.content"]), 10, "settled after the commit")
        older.close()
