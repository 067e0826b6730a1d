"""Server-sent events: what the monitor knows, each time it changes and at most once a second."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from starlette.responses import Response, StreamingResponse

from streams.freshness.web.guard import line

EVERY_SECONDS: Final = 1.0
#: Sent after so many looks without a change: a browser takes five seconds of silence for the end.
BEAT_LOOKS: Final = 2
MOST: Final = 32
BEAT: Final = "event: beat\ndata: 0\n\n"


class Streams:
    """Counts those that are open; one more than `most` is refused. `stopping` ends all."""

    def __init__(self, stopping: threading.Event, most: int = MOST) -> None:
        self._stopping, self._most = stopping, most
        self.open = 0

    def response(self, produce: Callable[[], Any], head: bool) -> Response:
        """A stream of what `produce` gives, as JSON; only its headers if `head`."""
        headers = {"x-accel-buffering": "no", "cache-control": "no-store"}
        if head:
            return Response(media_type="text/event-stream", headers=headers)
        if self.open >= self._most:
            return line(
                503, f"{self._most} live views are open already; ask /api/v1/live", {"retry-after": "5"}
            )
        return StreamingResponse(self._events(produce), media_type="text/event-stream", headers=headers)

    async def _events(self, produce: Callable[[], Any]) -> AsyncIterator[str]:
        """Ended by Starlette when the client goes away."""
        self.open += 1
        try:
            sent, quiet = "", 0
            yield "retry: 2000\n\n"
            while not self._stopping.is_set():
                now = json.dumps(produce(), ensure_ascii=False)
                quiet = quiet + 1 if now == sent else 0
                if quiet == 0:
                    sent = now
                    yield f"data: {now}\n\n"
                elif quiet % BEAT_LOOKS == 0:
                    yield f": nothing new\n{BEAT}"
                await asyncio.sleep(EVERY_SECONDS)
        finally:
            self.open -= 1
