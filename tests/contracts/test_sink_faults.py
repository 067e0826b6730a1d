"""A sink that fails in every way that a real Postgres can: nothing is half written, and it goes on by itself."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors.postgres.migrate import migrate_sink
from connectors.postgres.store import POOL_SECONDS, PostgresStore
from schemas.errors import Conflict, MigrationNeeded, Retry, SettingsError, SinkUnavailable, UpwellError
from schemas.sink import Claim, IntakePlan, IntakeRequest, IntakeView
from streams.intake.retry import persist
from tests.contracts.sinks import PostgresSink, layout
from tests.contracts.small_server import SmallServer, running
from tests.contracts.steps import AT, change, claim, document, embed, take_in, undecodable

#: Everything that a transaction of intake or embed writes.
STATE: Final = """
SELECT (SELECT array_agg((_key, _offset, _deleted)::text ORDER BY _key) FROM upwell.record_content),
       (SELECT array_agg((key, "offset", attempts)::text ORDER BY key) FROM upwell.pending),
       (SELECT array_agg((key, chunk_no, chunk_text)::text ORDER BY key) FROM upwell.embedding_content_g1),
       (SELECT array_agg((partition, next_offset)::text) FROM upwell.position),
       (SELECT count(*) FROM upwell.dead_letter), (SELECT count(*) FROM upwell.audit)
"""
REFUSE: Final = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{state}'; END$$;
CREATE TRIGGER refuse BEFORE INSERT ON upwell.audit FOR EACH STATEMENT EXECUTE FUNCTION refuse()
"""


WAITING: Final = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'upwell worker' AND wait_event_type = 'Lock'
"""


def state(connection: psycopg.Connection[Any]) -> tuple[Any, ...]:
    row = connection.execute(STATE).fetchone()
    assert row is not None
    return tuple(row)


class Persisting:
    """A call that is tried until it succeeds, as workers do; `troubles` as they come."""

    def __init__(self, attempt: Callable[[], Awaitable[Any]]) -> None:
        self.troubles: list[Exception] = []
        self._task = asyncio.create_task(
            persist(
                attempt,
                should_stop=lambda: False,
                deadline_seconds=120,
                where="test",
                on_trouble=self.troubles.append,
            )
        )

    async def fails(self, kind: type[Exception], times: int = 1) -> None:
        """Wait until it has failed so often, each time like this."""
        async with asyncio.timeout(60):
            while len(self.troubles) < times and not self._task.done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not self._task.done(), "it succeeded"
        assert {type(error) for error in self.troubles} == {kind}

    async def succeeds(self) -> None:
        await asyncio.wait_for(self._task, 60)


# -- any Postgres


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("40001", Conflict),
        ("40P01", Conflict),
        ("55P03", Conflict),
        ("53100", SinkUnavailable),
        ("53200", SinkUnavailable),
        ("25006", SinkUnavailable),
        ("57P03", SinkUnavailable),
        ("58030", SinkUnavailable),
    ],
)
async def test_what_fails_for_now_is_tried_again_and_done_once(
    postgres: PostgresSink, connection: psycopg.Connection[Any], sqlstate: str, kind: type[Retry]
) -> None:
    """Serialization failure, deadlock, lock timeout, disk and memory full, read-only, starting, I/O error."""
    before = state(connection)
    connection.execute(REFUSE.format(state=sqlstate).encode())
    call = Persisting(partial(take_in, postgres.store, change(1, 1, "tea"), change(2, 2, "milk"), upto=3))
    await call.fails(kind, 2)
    assert state(connection) == before
    connection.execute("DROP TRIGGER refuse ON upwell.audit")
    await call.succeeds()
    assert await postgres.actions() == [("applied", "[1]"), ("applied", "[2]")]


async def test_a_real_deadlock(dsn: str, connection: psycopg.Connection[Any]) -> None:
    """With somebody who locks rows in another order than all of upwell does."""
    store = await PostgresStore.open(make_conninfo(dsn, options="-c deadlock_timeout=3s"), writer="test")
    await take_in(store, change(1, 1, "tea"), change(2, 2, "milk"))
    lock = "SELECT FROM upwell.record_content WHERE _key = %s FOR UPDATE"
    with psycopg.connect(dsn, options="-c deadlock_timeout=60s") as other:
        other.execute(lock, ["[2]"])
        call = Persisting(partial(take_in, store, change(1, 3, "tea!"), change(2, 4, "milk!")))
        async with asyncio.timeout(20):
            while connection.execute(WAITING).fetchone() == (0,):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.to_thread(other.execute, lock, ["[1]"])
        await call.fails(Conflict)
        assert "deadlock detected" in str(call.troubles[0])
        other.rollback()
        await call.succeeds()
    rows = connection.execute("SELECT _offset FROM upwell.record_content ORDER BY _key").fetchall()
    assert rows == [(3,), (4,)]
    await store.close()


async def test_a_connection_that_is_lost_in_the_middle_of_a_transaction(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    before, views = state(connection), list[IntakeView]()
    made = IntakePlan(writes=[change(1, 1, "tea")], positions={AT: 2})

    def decide(view: IntakeView) -> IntakePlan:
        """Locks are held, nothing is written yet."""
        views.append(view)
        if len(views) == 1:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE application_name = 'upwell worker' AND datname = current_database() AND xact_start IS NOT NULL"
            )
            assert state(connection) == before
        return made

    call = Persisting(lambda: postgres.store.intake(IntakeRequest("content", {AT: None}, ["[1]"]), decide))
    await call.succeeds()
    assert [type(error) for error in call.troubles] == [SinkUnavailable]
    assert await postgres.actions() == [("applied", "[1]")]


UNAVAILABLE: Final = {
    "revoked": ("REVOKE INSERT ON upwell.audit FROM upwell_worker", SettingsError),
    "gone": ("ALTER TABLE upwell.audit RENAME TO elsewhere", MigrationNeeded),
    "full": (REFUSE.format(state="53100"), SinkUnavailable),
}


@pytest.mark.parametrize("how", list(UNAVAILABLE))
async def test_without_its_audit_nothing_is_written(
    dsn: str, connection: psycopg.Connection[Any], how: str
) -> None:
    """Neither a change, nor a deletion, a dead letter, a vector or the end of a text."""
    statement, kind = UNAVAILABLE[how]
    store = await PostgresStore.open(make_conninfo(dsn, options="-c role=upwell_worker"), writer="test")
    await take_in(store, change(1, 1, "tea"), change(2, 2, "milk"), change(3, 3, "rum"), upto=4)
    first, second, _ = await claim(store)
    await embed(store, first)
    before = state(connection)
    connection.execute(statement.encode())
    calls: list[Callable[[], Awaitable[Any]]] = [
        partial(take_in, store, change(4, 4, "gin"), upto=5, expected=4),
        partial(take_in, store, change(1, 4, None), upto=5, expected=4),
        partial(take_in, store, letters=[undecodable(5, 4)], upto=5, expected=4),
        partial(store.write, [document(second)]),
        partial(_bury, store, second),
    ]
    for call in calls:
        with pytest.raises(UpwellError) as caught:
            await call()
        assert type(caught.value) is kind, call
    if how == "gone":
        connection.execute("ALTER TABLE upwell.elsewhere RENAME TO audit")
    assert state(connection) == before
    await store.close()


async def _bury(store: PostgresStore, claimed: Claim) -> None:
    await store.fail(claimed, SinkUnavailable("away"), None)


# -- a Postgres of our own


@pytest.fixture(scope="module")
def small() -> Iterator[SmallServer]:
    with running() as server:
        with server.connect() as connection:
            connection.execute("CREATE DATABASE migrated")
        with server.connect("migrated") as connection:
            migrate_sink(connection, [layout("content")])
        yield server


@pytest.fixture
async def on_small(small: SmallServer) -> AsyncIterator[PostgresSink]:
    with small.connect() as connection:
        connection.execute("CREATE DATABASE test TEMPLATE migrated")
    store = await PostgresStore.open(small.dsn("test"), writer="test")
    await take_in(store, change(1, 1, "tea"), upto=2)
    yield PostgresSink(store, small.dsn("test"))
    await store.close()
    with small.connect() as connection:
        connection.execute("DROP DATABASE test WITH (FORCE)")


def more(sink: PostgresSink) -> Persisting:
    """A batch that needs several mebibytes."""
    rows = [change(key, key, os.urandom(500_000).hex()) for key in range(2, 6)]
    return Persisting(partial(take_in, sink.store, *rows, upto=6, expected=2))


async def test_a_full_disk_is_waited_for(small: SmallServer, on_small: PostgresSink) -> None:
    """53100 from a real one: nothing is lost, and it goes on as soon as there is room."""
    with small.connect("test") as connection:
        before = state(connection)
        with small.full():
            call = more(on_small)
            await call.fails(SinkUnavailable, 3)
            assert "No space left on device" in str(call.troubles[0])
            assert state(connection) == before
        await call.succeeds()
        assert await on_small.alive() == [f"[{key}]" for key in range(1, 6)]


async def test_a_read_only_sink_is_waited_for(small: SmallServer, on_small: PostgresSink) -> None:
    with small.read_only():
        call = more(on_small)
        await call.fails(SinkUnavailable, 2)
        assert "read-only transaction" in str(call.troubles[0])
    await call.succeeds()
    assert len(await on_small.alive()) == 5


async def test_a_sink_that_is_stopped_and_started_again(small: SmallServer, on_small: PostgresSink) -> None:
    """It goes on within seconds of its return, however long it was away, and has its slot again."""
    assert on_small.store._pool.reconnect_timeout < POOL_SECONDS
    with small.down():
        call = more(on_small)
        await call.fails(SinkUnavailable)
    await call.succeeds()
    assert len(await on_small.alive()) == 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
async def test_a_sink_that_crashes(small: SmallServer, on_small: PostgresSink, number: int) -> None:
    """One of its processes is killed, by the out-of-memory killer say: it ends all and recovers; or it ends at once."""
    if number == signal.SIGKILL:
        victim = small.connect("test")  # its process ends with it
        os.kill(victim.info.backend_pid, number)
    else:
        small.signal(number)
    await more(on_small).succeeds()
    assert await on_small.actions() == [("applied", f"[{key}]") for key in range(1, 6)]


async def test_either_end_hears_of_the_others_loss(small: SmallServer, on_small: PostgresSink) -> None:
    """A machine that is gone leaves no locks behind for longer than half a minute."""
    async with on_small.store._pool.connection() as one:
        for name, value in (("idle", "5"), ("interval", "5"), ("count", "3")):
            cursor = await one.execute(f"SHOW tcp_keepalives_{name}".encode())
            assert await cursor.fetchone() == (value,)
    await on_small.store.register_worker("s", "here", 1)
    held = on_small.store._held
    assert held is not None
    assert await (await held.execute("SHOW tcp_keepalives_idle")).fetchone() == ("5",)
