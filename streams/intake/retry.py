"""Retry in place: the only answer to a neighbour that is away, because nothing may be acknowledged meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from schemas.errors import Blocked, Halt, Retry

T = TypeVar("T")

FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 5.0
#: A blocked collection is tried again this often, so that it goes on by itself when mended.
BLOCKED_PAUSE_SECONDS: Final = 5.0

log = structlog.get_logger()


class Stopping(Exception):
    """The worker is stopping: leave un-acknowledged what is not committed (a retry loop would hang SIGTERM)."""


async def persist(
    attempt: Callable[[], Awaitable[T]],
    *,
    should_stop: Callable[[], bool],
    deadline_seconds: float,
    where: str,
    on_blocked: Callable[[Blocked], Awaitable[None]] | None = None,
    on_trouble: Callable[[Exception], None] = lambda error: None,
) -> T:
    """Call `attempt` until it succeeds. Retry errors back off with jitter, Blocked ones wait to be mended; `on_blocked`
    is told of each of these, and must neither raise nor take long. `on_trouble` is told of both.

    Raises Stopping when `should_stop`, Halt when Retry errors last longer than `deadline_seconds`, and whatever
    else `attempt` raises.
    """
    pause, since = FIRST_PAUSE_SECONDS, time.monotonic()
    while True:
        try:
            return await attempt()
        except Retry as error:
            on_trouble(error)
            if time.monotonic() - since > deadline_seconds:
                raise Halt(f"{where}: gave up after {deadline_seconds:.0f} s: {error}") from error
            log.warning("retry", where=where, error=str(error), pause_seconds=round(pause, 2))
        except Blocked as error:
            on_trouble(error)
            since, pause = time.monotonic(), BLOCKED_PAUSE_SECONDS
            log.error("blocked", where=where, error=str(error))
            if on_blocked is not None:
                await on_blocked(error)
        if should_stop():
            raise Stopping(where)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        if should_stop():
            raise Stopping(where)
