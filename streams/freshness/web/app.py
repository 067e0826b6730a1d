"""The monitor's HTTP interface (DESIGN 10). `make_app` wires it; it holds no state but caches.

Nothing here waits for the sink but a thread of `answers.py`: what is live is shown whatever the sink does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from schemas.errors import Retry, UpwellError
from schemas.freshness import CANARY
from streams.freshness.web.access import COOKIE, Access
from streams.freshness.web.answers import Answer, Answers
from streams.freshness.web.board import Board, believable, honest, judged, withheld
from streams.freshness.web.guard import HEAD, Guard, line
from streams.freshness.web.reads import Reads
from streams.freshness.web.stream import Streams
from streams.freshness.web.view import View, view

LAST_HOUR: Final = timedelta(hours=1)
#: An API client waits for the sink; a page does not.
API_PATIENCE_SECONDS: Final = 12.0
REPORT: Final = "report"
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_AWAY: Final = "the sink does not answer: delays, budgets and history are missing"


def make_app(
    board: Board, reads: Reads, *, token: str, host: str, metrics: Callable[[], bytes] | None = None
) -> FastAPI:
    """`host`: where it will listen, which decides what is shown to whom; `metrics`: the body of `/metrics`."""
    from streams.freshness.web import pages

    site = Site(board, reads, Answers(), Access.of(host, token), threading.Event())
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.stopping = site.stopping
    _health(app, site, metrics)
    _interface(app, site)
    pages.add(app, site)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(404, _http_error)
    app.add_exception_handler(405, _http_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_middleware(Guard, access=site.access)
    return app


@dataclass(frozen=True)
class Site:
    """What the handlers share."""

    board: Board
    reads: Reads
    answers: Answers
    access: Access
    stopping: threading.Event

    def live(self) -> dict[str, Any]:
        """What may be believed of what the monitor knows."""
        return honest(self.board.live())

    def shows_keys(self, request: Request) -> bool:
        return self.access.open_to(request.headers, request.cookies.get(COOKIE))

    async def report(self, patience_seconds: float | None = None) -> Answer:
        """Of the last hour."""
        more = () if patience_seconds is None else (patience_seconds,)
        return await self.answers.ask(REPORT, self._read_report, *more)

    def last_report(self) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = self.answers.last(REPORT)
        return found

    def view(self) -> View:
        """What the page shows now. Asks nobody."""
        return view(self.board.live(), self.last_report())

    async def known(self, collection: str) -> None:
        """Raises HTTPException for a collection that neither monitor nor sink has."""
        names = self.live().get("collections") or {}
        if collection not in names:
            report = await self.report()
            if collection not in (report.value or {}).get("collections", {}):
                raise HTTPException(404, "no such collection; / lists them")

    def _read_report(self) -> Mapping[str, Any]:
        found = self.reads.report(LAST_HOUR)
        collections = {name: each for name, each in found["collections"].items() if name != CANARY}
        return {**found, "collections": collections}


def _health(app: FastAPI, site: Site, metrics: Callable[[], bytes] | None) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        return line(200, "ok")

    @app.get("/readyz")
    async def readyz() -> Response:
        live = site.board.live()
        if believable(live):
            return line(200, "ok")
        age = live.get("age_seconds")
        return line(503, "not evaluated yet" if age is None else f"not evaluated for {age:.0f} s")

    @app.get("/metrics")
    def exposition() -> Response:
        if metrics is None:
            return line(404, "this process has no metrics")
        return Response(metrics(), media_type=METRICS_TYPE)


def _interface(app: FastAPI, site: Site) -> None:
    streams = Streams(site.stopping)

    @app.get("/api/v1/live")
    async def live() -> Response:
        return JSONResponse(withheld(site.live()))

    @app.get("/api/v1/events")
    async def events(request: Request) -> Response:
        return streams.response(lambda: withheld(site.live()), HEAD in request.scope)

    @app.get("/api/v1/freshness")
    async def freshness(request: Request) -> Response:
        return await _freshness(site, site.shows_keys(request))

    @app.get("/page/view")
    async def page_view() -> Response:
        await site.report()
        return JSONResponse(site.view())

    @app.get("/page/events")
    async def page_events(request: Request) -> Response:
        return streams.response(site.view, HEAD in request.scope)


async def _freshness(site: Site, shows_keys: bool) -> Response:
    """Without the sink 503, and the verdicts that the monitor has nevertheless."""
    answer = await site.report(API_PATIENCE_SECONDS)
    now = site.board.live()
    if answer.error is not None or answer.value is None:
        body = {**withheld(honest(now)), "error": why(answer.error)}
        return JSONResponse(body, 503, {"retry-after": "5"})
    found = judged(answer.value, now)
    return JSONResponse(found if shows_keys else withheld(found))


def why(error: Exception | None) -> str:
    """For whoever looks at the page: no address, no user. The neighbours' table has more."""
    if error is None or isinstance(error, Retry):
        return _AWAY
    return (
        "the sink refuses to be read: see the monitor's log"
        if isinstance(error, UpwellError)
        else "the page failed"
    )


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else getattr(error, "status_code", 404)
    if status == 405:
        return line(405, "only GET and HEAD are answered here", {"allow": "GET, HEAD"})
    said = getattr(error, "detail", "")
    if status == 404 and said in {"", "Not Found"}:
        said = "no such page; / is the first one"
    return line(status, str(said))


async def _bad_request(request: Request, error: Exception) -> Response:
    return line(400, "a parameter is missing or wrong")
