"""What is true of every answer: a Host header that is ours, strict headers, HEAD, one line where something is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streams.freshness.web.access import Access

log = structlog.get_logger()

HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
#: In the scope of a request that was HEAD: a live view answers it without an end to wait for.
HEAD: Final = "upwell.head"


class Guard:
    """Wraps the whole app."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            elif head:
                message = {**message, "body": b""}
            await send(message)

        server = scope.get("server")
        own = server[0] if server else None
        app = self._app if self._access.answers_to(Headers(scope=scope).get("host", ""), own) else _not_ours
        try:
            await app({**scope, "method": "GET", HEAD: True} if head else scope, receive, guarded)
        except Exception as error:
            log.error("the page failed", path=scope["path"], exc_info=error)
            if not started:
                await line(500, "the page failed; see the monitor's log")(scope, receive, guarded)


_LINE_END: Final = "\n"


def line(status: int, words: str, headers: Mapping[str, str] | None = None) -> PlainTextResponse:
    """One line of text."""
    return PlainTextResponse(" ".join(words.split()) + _LINE_END, status, dict(headers or {}))


_not_ours: Final[ASGIApp] = line(421, "this Host header names another machine; see README: the page")
