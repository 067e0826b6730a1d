"""`upwell worker`."""

from __future__ import annotations

import click

from streams.cli.context import settings_from


@click.command()
@click.option("--slot", help="Stable id of this worker; default UPWELL_WORKER_SLOT, else host and number.")
@click.pass_context
def worker(ctx: click.Context, slot: str | None) -> None:
    """Run one worker until SIGTERM: takes changes in, and embeds what is pending."""
    settings = settings_from(ctx)
    if slot:
        settings = settings.model_copy(update={"worker": settings.worker.model_copy(update={"slot": slot})})
    from streams import logs
    from streams.app import run_worker

    logs.set_up()
    run_worker(settings)
