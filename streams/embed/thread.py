"""One thread for what must not run twice at once, and an end to waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from schemas.errors import ModelHung

T = TypeVar("T")


class OneThread:
    """Calls in the only thread of `executor`, in turn, each with `deadline_seconds` from when it begins.

    A call that does not come back cannot be ended: whoever comes after it fails like it, without waiting as long again.
    """

    def __init__(self, executor: Executor, deadline_seconds: float) -> None:
        self._executor, self._deadline_seconds = executor, deadline_seconds
        self._turn = asyncio.Lock()
        self._hung: ModelHung | None = None

    async def run(self, call: Callable[..., T], *arguments: object) -> T:
        """Off the event loop. Raises ModelHung at the deadline, and what `call` raises."""
        async with self._turn:
            if self._hung is not None:
                raise self._hung
            running = asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)
            await asyncio.wait({running}, timeout=self._deadline_seconds)
            if not running.done():
                self._hung = ModelHung(
                    f"the model has not answered for {self._deadline_seconds:g} s: this worker ends and starts again"
                )
                raise self._hung
            return running.result()
