"""What was read of the sink, kept for a few seconds: ten browsers cost as one, and a sink that hangs holds up nobody.

Each question is asked by at most one thread at a time. Whoever asks waits a moment for it and otherwise has the answer
before, or none; the thread goes on. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final

import structlog

from schemas.errors import UpwellError

log = structlog.get_logger()

KEPT_SECONDS: Final = 4.0
#: An answer this old is none any more.
USABLE_SECONDS: Final = 60.0
#: A page is printed without an answer rather than later than this.
PATIENCE_SECONDS: Final = 0.5
MOST: Final = 200
#: Threads that may ask at once; a sink that hangs holds no more.
ASKING: Final = 4


@dataclass(slots=True)
class Answer:
    """`value` is the last that was read; `error` says why there is none of now. `at`: when it was answered."""

    value: Any = None
    value_at: float = float("-inf")
    error: Exception | None = None
    at: float = float("-inf")
    asking: asyncio.Task[None] | None = None


class Answers:
    """`clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[Hashable, Answer] = OrderedDict()
        self._threads = asyncio.Semaphore(ASKING)

    async def ask(
        self, question: Hashable, read: Callable[[], Any], patience_seconds: float = PATIENCE_SECONDS
    ) -> Answer:
        """The answer kept, else a new one if it comes in time."""
        answer = self._kept.setdefault(question, Answer())
        self._kept.move_to_end(question)
        if self._clock() - answer.at >= KEPT_SECONDS and answer.asking is None:
            answer.asking = asyncio.create_task(self._ask(answer, read))
        if answer.asking is not None:
            await asyncio.wait({answer.asking}, timeout=patience_seconds)
        self._forget()
        return answer

    def last(self, question: Hashable) -> Any:
        """What was read last, without asking; None if that is too long ago."""
        answer = self._kept.get(question)
        if answer is None or self._clock() - answer.value_at > USABLE_SECONDS:
            return None
        return answer.value

    async def _ask(self, answer: Answer, read: Callable[[], Any]) -> None:
        try:
            async with self._threads:
                answer.value, answer.error = await in_thread(read), None
                answer.value_at = self._clock()
        except Exception as error:
            if not isinstance(error, UpwellError):
                log.error("the page could not read the sink", exc_info=error)
            answer.error = error
        finally:
            answer.at, answer.asking = self._clock(), None

    def _forget(self) -> None:
        """The questions asked longest ago; keys are anybody's to make up."""
        for question in [each for each, answer in self._kept.items() if answer.asking is None]:
            if len(self._kept) <= MOST:
                return
            del self._kept[question]


async def in_thread(read: Callable[[], Any]) -> Any:
    """Call it in a thread that does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def run() -> None:
        value, failed = None, None
        try:
            value = read()
        except Exception as error:
            failed = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, failed)

    threading.Thread(target=run, name="upwell page read", daemon=True).start()
    return await future
