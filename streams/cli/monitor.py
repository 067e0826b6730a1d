"""`upwell monitor`."""

from __future__ import annotations

import click

from streams.cli.context import settings_from


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
    run(Monitor(settings))
