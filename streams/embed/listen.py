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
#: Of the process that took a change in: claims of all others at the same moment would only be in its way.
HEAD_START_SECONDS: Final = 0.02


async def listen(dsn: str, wake: Callable[[], None], should_stop: Callable[[], bool]) -> None:
    """LISTEN until stopped; while the sink is away the embedder's own poll covers for it."""
    soon = once_soon(wake)
    while not should_stop():
        with contextlib.suppress(psycopg.Error):
            async with await psycopg.AsyncConnection.connect(
                dsn, autocommit=True, connect_timeout=10, application_name="upwell listen"
            ) as connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                while not should_stop():
                    async for _ in connection.notifies(timeout=1.0):
                        soon()
        await asyncio.sleep(PAUSE_SECONDS)


def once_soon(wake: Callable[[], None]) -> Callable[[], None]:
    """Calls `wake` after the head start, once for all calls until then."""
    is_due = False

    def fire() -> None:
        nonlocal is_due
        is_due = False
        wake()

    def soon() -> None:
        nonlocal is_due
        if not is_due:
            is_due = True
            asyncio.get_running_loop().call_later(HEAD_START_SECONDS, fire)

    return soon
