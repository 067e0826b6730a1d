"""A transaction that waits for the sink only where it needs an answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg


@contextlib.asynccontextmanager
async def transaction(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """BEGIN goes out with the first statements, COMMIT with the last: psycopg's own waits for an answer to each.

    What is inside goes in a pipeline: an answer, a `rowcount` too, is there once it or a later one was fetched, or
    after the end. An error rolls all back; it is raised at the next fetch, or at the end.
    """
    try:
        async with connection.pipeline():
            await connection.execute("BEGIN")
            yield
            await connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(psycopg.Error):
            await connection.rollback()
        raise
