"""A worker's side work, done by blocking code in a thread whenever the sink says that there is some."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from schemas.errors import UpwellError

log = structlog.get_logger()

POLL_SECONDS: Final = 0.25
#: After an error, in looks: a neighbour that is away is no matter here, the stages themselves wait for it.
PAUSE_LOOKS: Final = 20


async def attend(
    what: str,
    is_due: Callable[[], Awaitable[bool]],
    work: Callable[[], None],
    should_stop: Callable[[], bool],
) -> None:
    """Look four times a second until told to stop. `is_due` is cheap; an error of either is logged under `what`."""
    looks = 0
    while not should_stop():
        looks -= 1
        if looks < 0:
            try:
                if await is_due():
                    await asyncio.to_thread(work)
            except UpwellError as error:
                log.warning(what, error=str(error))
                looks = PAUSE_LOOKS
        await asyncio.sleep(POLL_SECONDS)
