"""`upwell monitor`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.errors import SettingsError
from streams.cli.context import settings_from
from streams.settings import Settings

if TYPE_CHECKING:
    from streams.freshness.monitor import Monitor


@click.command()
@click.option("--host", help="Where to listen; default UPWELL_MONITOR_HOST.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), help="Default UPWELL_MONITOR_PORT; 0: any that is free."
)
@click.pass_context
def monitor(ctx: click.Context, host: str | None, port: int | None) -> None:
    """Measure freshness until SIGTERM, and show it: rounds, verdicts, SLO, page, metrics.

    It needs no worker; a connector that FAILED is restarted. Two monitors at once are harmless.
    """
    settings = settings_from(ctx)
    given = {"host": host, "port": port}
    changed = {name: value for name, value in given.items() if value is not None}
    settings = settings.model_copy(update={"monitor": settings.monitor.model_copy(update=changed)})
    from streams import logs
    from streams.freshness.monitor import Monitor, run

    logs.set_up()
    token = token_of(settings)
    found = Monitor(settings)
    run(found, lambda: serving(found, token))


@dataclass(frozen=True)
class LiveBoard:
    """The monitor's memory, as the page asks for it."""

    monitor: Monitor

    def live(self) -> Mapping[str, Any]:
        from streams.freshness.live import live

        return live(self.monitor)


def serving(monitor: Monitor, token: str) -> tuple[str, Callable[[], None]]:
    """Start the page; where it is, and what stops it. Raises SettingsError if the address cannot be had."""
    from streams.freshness.exposition import exposition
    from streams.freshness.web.app import make_app
    from streams.freshness.web.reads import SinkReads
    from streams.freshness.web.serving import serve

    settings, board = monitor.settings, LiveBoard(monitor)
    reads = SinkReads(
        settings.sink.dsn,
        timedelta(hours=settings.kafka.retention_hours),
        timedelta(days=settings.sink.audit_retention_days),
    )
    app = make_app(
        board,
        reads,
        token=token,
        host=settings.monitor.host,
        metrics=lambda: exposition(board.live(), monitor.summaries.last.report),
    )
    served = serve(app, settings.monitor.host, settings.monitor.port)
    return served.url, served.stop


def token_of(settings: Settings) -> str:
    """The token, or the file's. Raises SettingsError."""
    if not settings.monitor.token_file:
        return settings.monitor.token
    if settings.monitor.token:
        raise SettingsError("monitor.token and monitor.token_file are both set: leave one out")
    try:
        return Path(settings.monitor.token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"monitor.token_file cannot be read: {type(error).__name__}") from None
