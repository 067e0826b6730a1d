"""What a browser is shown: overview, collection, record, login, charts. HTML is whole before any script runs."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from schemas.errors import SettingsError, UpwellError
from schemas.freshness import Bucket
from streams.freshness.charts import budget_bar, line_chart, stage_bars, verdict_strip
from streams.freshness.web.access import COOKIE
from streams.freshness.web.app import Site, why
from streams.freshness.web.guard import line
from streams.freshness.web.words import DASH, count, delay, duration, moment, percent, ratio

HERE: Final = Path(__file__).parent
STATIC: Final = {
    "page.css": "text/css; charset=utf-8",
    "noscript.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
#: Windows of the charts that a person may choose, in hours.
HOURS: Final = {1: "1 h", 6: "6 h", 24: "24 h", 168: "7 days", 720: "30 days"}
CHARTS: Final = ("staleness", "verdicts", "stages", "budget")
DAY_SECONDS: Final = 86_400
#: The form of the login is small.
MOST_FORM_BYTES: Final = 4096
LONGEST_KEY: Final = 4000


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "duration": duration,
        "delay": delay,
        "count": count,
        "moment": moment,
        "percent": percent,
    }
    made.filters |= {"ratio": ratio, "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False)}
    files = "".join((HERE / "static" / name).read_text(encoding="utf-8") for name in STATIC)
    made.globals |= {"version": hashlib.sha256(files.encode()).hexdigest()[:10], "dash": DASH}
    return made


def add(app: FastAPI, site: Site) -> None:
    """All pages."""
    pages = Pages(site, _environment())

    @app.get("/")
    async def overview(request: Request) -> Response:
        return await pages.overview(request)

    @app.get("/collections/{name}")
    async def collection(request: Request, name: str, hours: int = 6) -> Response:
        return await pages.collection(request, name, hours)

    @app.get("/collections/{name}/records")
    async def record(request: Request, name: str, key: str = "") -> Response:
        return await pages.record(request, name, key)

    @app.get("/charts/{name}/{chart}.svg")
    async def chart(name: str, chart: str, hours: int = 6) -> Response:
        await site.known(name)
        if chart not in CHARTS or hours not in HOURS:
            raise HTTPException(404, "no such chart")
        return Response(await pages.chart(name, chart, hours), media_type="image/svg+xml")

    @app.get("/login")
    async def login(request: Request, to: str = "/") -> Response:
        return pages.login(request, to)

    @app.post("/login")
    async def enter(request: Request) -> Response:
        return await pages.enter(request)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "no such file")
        body = (HERE / "static" / name).read_bytes()
        return Response(body, media_type=STATIC[name], headers={"cache-control": "public, max-age=86400"})


class Pages:
    """Renders."""

    def __init__(self, site: Site, environment: Environment) -> None:
        self._site, self._environment = site, environment

    async def overview(self, request: Request) -> Response:
        names = list(self._site.live().get("collections") or {})
        drawing = asyncio.gather(*(self.charts(name, ("staleness", "stages"), 6) for name in names))
        report, drawn = await asyncio.gather(self._site.report(), drawing)
        charts = dict(zip(names, drawn, strict=True))
        shown = self._site.view()
        return self._page(request, "overview.html", shown=shown, charts=charts, error=_said(report.error))

    async def collection(self, request: Request, name: str, hours: int) -> Response:
        await self._site.known(name)
        if hours not in HOURS:
            raise HTTPException(404, "no such window; it has 1, 6, 24, 168 or 720 hours")
        report, charts = await asyncio.gather(self._site.report(), self.charts(name, CHARTS, hours))
        found = ((self._site.last_report() or {}).get("collections") or {}).get(name) or {}
        worst = [each for each in found.get("worst") or [] if isinstance(each, dict)]
        return self._page(
            request,
            "collection.html",
            name=name,
            shown=self._site.view(),
            report=found,
            worst=worst,
            charts=charts,
            hours=hours,
            windows=HOURS,
            error=_said(report.error),
        )

    async def record(self, request: Request, name: str, key: str) -> Response:
        """All that is known of one key."""
        await self._site.known(name)
        if not self._site.shows_keys(request):
            return _to_login(request, self._site.access.token)
        shown: dict[str, Any] = {"name": name, "key": key, "found": None, "error": ""}
        if not key:
            return self._page(request, "record.html", **shown)
        if len(key) > LONGEST_KEY:
            return self._page(request, "record.html", 400, **{**shown, "error": "that key is too long"})
        answer = await self._site.answers.ask(
            ("explain", name, key), lambda: self._site.reads.explain(name, key), 8.0
        )
        if isinstance(answer.error, SettingsError):
            return self._page(request, "record.html", 400, **{**shown, "error": str(answer.error)})
        if answer.error is not None or answer.value is None:
            error = "the sink does not answer; try again" if _is_away(answer.error) else why(answer.error)
            return self._page(request, "record.html", 503, **{**shown, "error": error})
        status = 404 if answer.value["state"] == "unknown" else 200
        return self._page(request, "record.html", status, **{**shown, "found": answer.value})

    async def charts(self, name: str, wanted: Sequence[str], hours: int) -> dict[str, Markup]:
        """SVG that `charts.py` has escaped, by name."""
        drawn = await asyncio.gather(*(self.chart(name, chart, hours) for chart in wanted))
        return {chart: Markup(svg) for chart, svg in zip(wanted, drawn, strict=True)}

    async def chart(self, name: str, chart: str, hours: int) -> str:
        """One chart; without an answer of the sink it says that nothing was measured."""
        if chart in {"staleness", "verdicts"}:
            window = timedelta(hours=hours)
            answer = await self._site.answers.ask(
                ("history", name, hours), lambda: self._site.reads.history(name, window)
            )
            return _history_chart(chart, name, answer.value or (), self._threshold(name), window)
        await self._site.report()
        found = ((self._site.last_report() or {}).get("collections") or {}).get(name) or {}
        if chart == "budget":
            return budget_bar(
                (found.get("slo") or {}).get("budget_remaining_ratio"), title=f"Error budget left of {name}"
            )
        stages = found.get("stages") or {}
        return stage_bars(
            {stage: (each.get("p50"), each.get("p95")) for stage, each in stages.items()},
            shares={stage: each.get("share") for stage, each in stages.items()},
            title=f"Delay of {name} by stage, last hour",
        )

    def _threshold(self, name: str) -> float | None:
        found: float | None = (
            (self._site.live().get("collections") or {}).get(name, {}).get("threshold_seconds")
        )
        return found

    def login(self, request: Request, to: str, status: int = 200, error: str = "") -> Response:
        return self._page(request, "login.html", status, to=_local(to), error=error)

    async def enter(self, request: Request) -> Response:
        """The token in a form becomes a cookie that proves it."""
        origin = request.headers.get("origin")
        if origin not in (None, "null") and urlsplit(origin).netloc != request.headers.get("host"):
            return line(403, "this form came from another site")
        form = parse_qs((await _body(request)).decode("utf-8", "replace"))
        if not self._site.access.right(form.get("token", [""])[0]):
            return self.login(request, form.get("to", ["/"])[0], 403, "That is not the token.")
        response = RedirectResponse(_local(form.get("to", ["/"])[0]), 303)
        secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        session = self._site.access.session()
        response.set_cookie(
            COOKIE, session, max_age=30 * DAY_SECONDS, httponly=True, samesite="strict", secure=secure
        )
        return response

    def _page(self, request: Request, template: str, status: int = 200, **more: Any) -> Response:
        now = datetime.now(UTC)
        shared = {
            "deployment": self._site.board.live().get("name") or "upwell",
            "printed": now,
            "shows_keys": self._site.shows_keys(request),
            "has_token": bool(self._site.access.token),
            "here": request.url.path,
        }
        return HTMLResponse(self._environment.get_template(template).render(**shared, **more), status)


def _history_chart(
    chart: str, name: str, buckets: Sequence[Bucket], threshold: float | None, window: timedelta
) -> str:
    if chart == "staleness":
        longest = max((bucket.minutes for bucket in buckets), default=1)
        return line_chart(
            [(bucket.start, bucket.staleness_max_seconds) for bucket in buckets],
            threshold=threshold,
            title=f"Staleness of {name}, worst of each minute",
            gap=timedelta(minutes=2 * longest),
        )
    until = datetime.now(UTC)
    return verdict_strip(buckets, since=until - window, until=until, title=f"Verdicts of {name}")


def _said(error: Exception | None) -> str:
    return "" if error is None else why(error)


def _is_away(error: Exception | None) -> bool:
    return error is None or (isinstance(error, UpwellError) and not isinstance(error, SettingsError))


def _to_login(request: Request, token: str) -> Response:
    """Keys and texts are not for everybody."""
    if not token:
        return line(403, "keys and texts are shown with a token only, and none is set: UPWELL_MONITOR_TOKEN")
    if "text/html" not in request.headers.get("accept", ""):
        return line(401, "keys and texts need the token", {"www-authenticate": "Bearer"})
    here = f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
    return RedirectResponse(f"/login?to={quote(here, safe='')}", 303)


def _local(to: str) -> str:
    """A path of ours: a login leads nowhere else."""
    if not to.startswith("/") or to.startswith("//") or "\\" in to or not to.isprintable():
        return "/"
    return to


async def _body(request: Request) -> bytes:
    found = b""
    async for part in request.stream():
        found += part
        if len(found) > MOST_FORM_BYTES:
            raise HTTPException(413, "that form is too long")
    return found
