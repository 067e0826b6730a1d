"""`/metrics`, `/healthz` and `/readyz` of a worker, on its own event loop: a loop that hangs does not answer.

Nothing here may stop the pipeline: without its port a worker says so once and goes on.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from streams.freshness.exposition import CONTENT_TYPE
from streams.vitals import Vitals
from streams.worker_metrics import WorkerMetrics

log = structlog.get_logger()

STOP_SECONDS: Final = 1.0


def make_http(vitals: Vitals, metrics: WorkerMetrics) -> web.Application:
    """The three pages. 503 with one line says what is wrong."""

    async def show(request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", show)
    app.router.add_get("/healthz", _check(vitals.stuck))
    app.router.add_get("/readyz", _check(vitals.not_ready))
    return app


def _check(problem: Callable[[], str]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        said = problem()
        return web.Response(text=f"{said or 'ok'}\n", status=503 if said else 200)

    return handle


def port_of(base: int, slot: str) -> int:
    """The port of a slot: the first one's plus the slot's number; 0 stays 0."""
    number = re.search(r"-(\d{1,4})$", slot)
    return base and base + (int(number[1]) if number else 0)


async def start_http(app: web.Application, host: str, port: int) -> tuple[web.AppRunner | None, str]:
    """What to clean up at the end, and the URL; None and "" if the port cannot be had."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except (OSError, OverflowError) as error:
        await runner.cleanup()
        log.warning("no metrics of this worker", host=host, port=port, error=str(error))
        return None, ""
    # The first address is the one asked for; port 0 is known only now.
    bound = runner.addresses[0]
    shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    url = f"http://{shown}:{bound[1]}"
    log.info("worker metrics", url=f"{url}/metrics")
    return runner, url
