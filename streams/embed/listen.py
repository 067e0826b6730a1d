"""Wakes this process's embedder when another process's intake commits pending rows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, LiteralString

import psycopg
import structlog

log = structlog.get_logger()

CHANNEL: LiteralString = "upwell_pending"
PAUSE_SECONDS: Final = 2.0


async def listen(dsn: str, wake: Callable[[], None], should_stop: Callable[[], bool]) -> None:
    """LISTEN until stopped; while the sink is away the embedder's own poll covers for it."""
    while not should_stop():
        with contextlib.suppress(psycopg.Error):
            async with await psycopg.AsyncConnection.connect(
                dsn, autocommit=True, connect_timeout=10, application_name="upwell listen"
            ) as connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                while not should_stop():
                    async for _ in connection.notifies(timeout=1.0):
                        wake()
        await asyncio.sleep(PAUSE_SECONDS)
