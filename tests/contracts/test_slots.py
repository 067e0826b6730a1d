"""Whose a worker slot is while connections, and the workers behind them, come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from structlog.testing import capture_logs

from connectors.postgres import store as store_module
from connectors.postgres.keeping import CLIENT, kept
from connectors.postgres.store import PostgresStore
from schemas.errors import SlotTaken

OURS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'upwell slot s'"
END_OF_SLOT = f"SELECT pg_terminate_backend(pid, 10000) FROM ({OURS}) AS ours".encode()
HELD = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid IN ({OURS})".encode()


def rounds(number: int) -> Iterator[bool]:
    """`should_stop` of so many rounds of housekeeping."""
    return chain(repeat(False, number), repeat(True))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Housekeeping without its pauses."""
    monkeypatch.setattr(store_module, "SEEN_SECONDS", 0.0)


async def test_a_slot_that_a_killed_worker_still_holds_is_waited_for(dsn: str) -> None:
    """The server has not heard of its end yet. The wait is said."""
    dead, successor = await PostgresStore.open(dsn, writer="s"), await PostgresStore.open(dsn, writer="s")
    await dead.register_worker("s", "here", 1)
    with capture_logs() as said:
        waiting = asyncio.create_task(successor.register_worker("s", "here", 2))
        async with asyncio.timeout(20):
            while not said:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert said[0]["event"] == "worker slot is still held: waiting"
        assert not waiting.done()
        await dead.close()
        await asyncio.wait_for(waiting, 20)
    assert len(said) == 1
    await successor.close()


async def test_a_slot_whose_connection_was_lost_is_taken_again(
    dsn: str, connection: psycopg.Connection[Any], at_once: None
) -> None:
    """As after a restart of the sink: nobody else may have it meanwhile."""
    store = await PostgresStore.open(dsn, writer="s")
    await store.register_worker("s", "here", 1)
    connection.execute(END_OF_SLOT)
    assert connection.execute(HELD).fetchone() == (0,)
    calls = rounds(4)
    await store.keep_house(lambda: next(calls))
    assert connection.execute(HELD).fetchone() == (1,)
    await store.close()


async def test_a_slot_that_another_has_taken_meanwhile_ends_the_worker(
    dsn: str, connection: psycopg.Connection[Any], at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is sure that it is not our own lost connection that still has it."""
    store, other = await PostgresStore.open(dsn, writer="s"), await PostgresStore.open(dsn, writer="s")
    await store.register_worker("s", "here", 1)
    connection.execute(END_OF_SLOT)
    await other.register_worker("s", "there", 2)
    calls = rounds(6)
    await store.keep_house(lambda: next(calls))
    monkeypatch.setattr(store_module, "SLOT_SECONDS", 0.0)
    with pytest.raises(SlotTaken, match="slot s is taken by a live worker"):
        await store.keep_house(lambda: False)
    await store.close()
    await other.close()


async def test_transactions_are_read_committed_whatever_the_database_says(
    dsn: str, connection: psycopg.Connection[Any]
) -> None:
    """Else a statement after a lock would see what was before it (H7, H14, H15, H19)."""
    name = conninfo_to_dict(dsn)["dbname"]
    connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'".encode())
    store = await PostgresStore.open(dsn, writer="s")
    async with store._pool.connection() as one, one.transaction():
        assert await (await one.execute("SHOW transaction_isolation")).fetchone() == ("read committed",)
    await store.close()


def test_what_a_dsn_says_of_keepalives_stays() -> None:
    ours = conninfo_to_dict(kept("host=a"))
    assert {name: ours[name] for name in CLIENT} == CLIENT
    own = conninfo_to_dict(kept(make_conninfo("host=a", keepalives_idle="60")))
    assert own["keepalives_idle"] == "60"
    assert own["tcp_user_timeout"] == CLIENT["tcp_user_timeout"]
