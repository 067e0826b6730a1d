"""Transactions whose BEGIN and COMMIT wait for no answer of their own: all or nothing, and the first error is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from connectors.postgres.transaction import transaction

Connection = psycopg.AsyncConnection[Any]


@pytest.fixture
async def connection(empty_dsn: str) -> AsyncIterator[Connection]:
    async with await psycopg.AsyncConnection.connect(empty_dsn, autocommit=True) as found:
        await found.execute("CREATE TABLE note (number int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
        yield found


async def insert(connection: Connection, *numbers: object) -> psycopg.AsyncCursor[Any]:
    return await connection.execute("INSERT INTO note SELECT unnest(%s::int[])", (list(numbers),))


async def stored(connection: Connection) -> list[int]:
    """Of the same connection: it is usable again."""
    assert connection.info.transaction_status.name == "IDLE"
    return [row[0] async for row in await connection.execute("SELECT number FROM note ORDER BY 1")]


async def test_what_is_inside_is_committed_and_answers_come_late(connection: Connection) -> None:
    async with transaction(connection):
        first = await insert(connection, 1, 2)
        row = await (await connection.execute("SELECT count(*) FROM note")).fetchone()
        assert (row, first.rowcount) == ((2,), 2)
        last = await connection.execute("SELECT max(number) FROM note")
    assert await last.fetchone() == (2,)
    assert await stored(connection) == [1, 2]


async def test_an_exception_inside_undoes_it(connection: Connection) -> None:
    async def work() -> None:
        async with transaction(connection):
            await insert(connection, 1)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await work()
    assert await stored(connection) == []


@pytest.mark.parametrize("is_fetched", [True, False])
async def test_the_first_error_is_raised_and_all_is_undone(connection: Connection, is_fetched: bool) -> None:
    """Not that the statements after it were skipped, which would count as a sink that is away."""

    async def work() -> None:
        async with transaction(connection):
            await insert(connection, 1)
            await insert(connection, "one")
            later = await connection.execute("SELECT 1")
            if is_fetched:
                await later.fetchone()

    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        await work()
    assert await stored(connection) == []


async def test_what_fails_at_the_commit_is_raised(connection: Connection) -> None:
    async def work() -> None:
        async with transaction(connection):
            await insert(connection, 1, 1)

    with pytest.raises(psycopg.errors.UniqueViolation):
        await work()
    assert await stored(connection) == []


async def test_cancelled_it_is_undone(connection: Connection) -> None:
    async def work() -> None:
        async with transaction(connection):
            await insert(connection, 1)
            await (await connection.execute("SELECT pg_sleep(60)")).fetchone()

    task = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await stored(connection) == []


async def test_a_lost_connection_is_an_error(connection: Connection, empty_dsn: str) -> None:
    async def work() -> None:
        async with transaction(connection):
            await insert(connection, 1)
            pid = connection.info.backend_pid
            async with await psycopg.AsyncConnection.connect(empty_dsn, autocommit=True) as other:
                await other.execute("SELECT pg_terminate_backend(%s)", (pid,))
            await asyncio.sleep(0.2)

    with pytest.raises(psycopg.OperationalError):
        await work()
    assert connection.closed
