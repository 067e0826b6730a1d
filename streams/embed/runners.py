"""Two runners of steps: while the batch of one is with the model, the other one writes its last and claims its next. A
third one takes what is live while another is at work.

The model does one call at a time, so this makes it no busier than it can be, only never idle while there is work:

1. The second runner claims only if the last claim came back full, so a short queue costs no claim more, and no batch
   waits for company; or if something came while the first one's step lasts.
2. What failed before is alone in the process (ADR 0018): whoever claims it gives it back, and the first runner claims
   it when the second one is at rest, which then rests until a claim has nothing of it.
3. Leases are freed when all are at rest: what one failed with, and nothing that the others still work on.
4. A step of a backfill lasts about a second, in many calls of the model. What is live goes between them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from schemas.errors import ModelHung, Retry, UpwellError
from streams.vitals import EMBED, Vitals

log = structlog.get_logger()

FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 5.0
#: The number of the runner that takes what is live.
LIVE: Final = 2


class Runners:
    """`step(alone, live_only)` claims and embeds a batch and returns the number of claims; it calls `claimed` between
    the two.

    `release(died)` frees all leases of this process.
    """

    def __init__(
        self,
        step: Callable[[bool, bool], Awaitable[int]],
        release: Callable[[bool], Awaitable[int]],
        vitals: Vitals,
        poll_seconds: float,
    ) -> None:
        self._step, self._release, self._vitals = step, release, vitals
        self._poll_seconds = poll_seconds
        self._wake, self._more, self._live_wake = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._second_step, self._live_step = asyncio.Lock(), asyncio.Lock()
        self._at_work = 0
        self._alone = True
        self._stopping = False
        self._errors: list[Exception] = []
        self._on_fatal: Callable[[BaseException], None] = lambda error: None
        self._pause_seconds = FIRST_PAUSE_SECONDS

    def wake(self) -> None:
        """There is something to claim: do not wait for the poll."""
        self._wake.set()
        self._live_wake.set()

    def stop(self) -> None:
        """Finish the steps that run, then return from `run`."""
        self._stopping = True
        self._wake_all()

    def claimed(self, *, alone: bool, is_full: bool | None, failed_before: bool) -> None:
        """What a step has claimed: whether there is more, None if that is not known, and whether some of it has to be
        alone.
        """
        if alone or failed_before:
            self._alone = failed_before
        if is_full is None and not failed_before:
            return
        if is_full and not self._alone:
            self._more.set()
        else:
            self._more.clear()

    async def run(self, on_fatal: Callable[[BaseException], None]) -> None:
        """Free this slot's leases of an earlier life or step, then do steps until `stop`. What no later attempt cures
        goes to `on_fatal` at once.
        """
        self._on_fatal = on_fatal
        released, died = False, True
        while not self._stopping:
            try:
                if not released:
                    await self._release(died)
                    released, died = True, False
                await self._both()
            except Retry as error:
                self._vitals.trouble(EMBED, error)
                released = False  # what the failed step had claimed must not wait for the end of its lease
                log.warning("embed retry", error=str(error), pause_seconds=self._pause_seconds)
                await self._pause()
            except Exception as error:
                self._fatal(error)
                if not any(isinstance(each, ModelHung) for each in self._errors):  # no text's fault
                    with contextlib.suppress(UpwellError):
                        await self._release(False)
                return

    async def _both(self) -> None:
        """Until `stop`, or until one fails; the others then finish their steps first. Raises what failed."""
        self._errors.clear()
        self._more.clear()
        self._alone = True
        await asyncio.gather(self._first(), self._second(), self._live())
        for error in sorted(self._errors, key=lambda each: isinstance(each, Retry)):
            raise error

    @property
    def _goes_on(self) -> bool:
        return not self._stopping and not self._errors

    async def _first(self) -> None:
        while self._goes_on:
            if self._alone:
                async with self._second_step, self._live_step:
                    claims = await self._timed(0, alone=True)
            else:
                claims = await self._timed(0, alone=False)
            if claims == 0:
                await self._wait(self._poll_seconds)

    async def _second(self) -> None:
        while self._goes_on:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._more.wait(), self._poll_seconds)
            if self._has_work_for_two():
                async with self._second_step:
                    if self._has_work_for_two():
                        await self._timed(1, alone=False)

    async def _live(self) -> None:
        """While another is at work, between the calls of its step; else the first one takes what comes."""
        while self._goes_on:
            await self._live_wake.wait()
            self._live_wake.clear()
            claims = 1
            while claims and self._goes_on and self._at_work and not self._alone:
                async with self._live_step:
                    claims = 0 if self._alone else await self._timed(LIVE, alone=False)

    def _wake_all(self) -> None:
        for event in (self._wake, self._more, self._live_wake):
            event.set()

    def _has_work_for_two(self) -> bool:
        """More than was claimed, or something that came since the step that the first runner is in began."""
        return not self._alone and (self._more.is_set() or self._wake.is_set())

    async def _timed(self, runner: int, *, alone: bool) -> int:
        if not self._goes_on:
            return 0
        live_only = runner == LIVE
        if not live_only:
            self._wake.clear()
            self._at_work += 1
        self._vitals.embedding(True, runner)
        try:
            claims = await self._step(alone, live_only)
        except Exception as error:
            self._failed(error)
            return 0
        finally:
            self._vitals.embedding(False, runner)
            self._at_work -= not live_only
        self._pause_seconds = FIRST_PAUSE_SECONDS
        return claims

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, Retry):
            self._fatal(error)
        self._errors.append(error)
        self._wake_all()

    def _fatal(self, error: Exception) -> None:
        """The first one only."""
        if all(isinstance(each, Retry) for each in self._errors):
            self._on_fatal(error)

    async def _pause(self) -> None:
        """Longer from time to time, until a step succeeds."""
        seconds = self._pause_seconds
        self._pause_seconds = min(seconds * 2, LONGEST_PAUSE_SECONDS)
        if not self._stopping:
            self._wake.clear()
            await self._wait(seconds)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)
