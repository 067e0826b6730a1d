"""`upwell connector`: the Debezium connector and its first loads."""

from __future__ import annotations

import dataclasses
import json
import sys
import time

import click

from streams.cli.context import say, settings_from


@click.group()
def connector() -> None:
    """Apply, look at and restart the Debezium connector."""


@connector.command()
@click.option("--no-load", is_flag=True, help="Do not ask for first loads, nor follow them.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Then wait so long until all is searchable; a worker must run.",
)
@click.pass_context
def apply(ctx: click.Context, no_load: bool, wait: float) -> None:
    """Create topics and connector, and load what is not loaded yet. Killed and run again, it goes on."""
    from streams.capture import apply as apply_capture
    from streams.capture import wait_searchable

    settings = settings_from(ctx)
    apply_capture(settings, say, load=not no_load)
    if wait and not wait_searchable(settings, time.monotonic() + wait, say):
        click.echo("not everything is searchable yet", err=True)
        sys.exit(1)


@connector.command()
@click.option("--json", "as_json", is_flag=True, help="For a machine.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """State of connector, task and first loads; exit 1 unless it runs."""
    from streams.capture import look

    seen = look(settings_from(ctx))
    if as_json:
        say(json.dumps(dataclasses.asdict(seen), default=str))
    else:
        cause = f": {seen.cause}" if seen.cause else ""
        say(f"connector {seen.name}: {seen.connector}, task {seen.task}{cause}")
        for name, load in seen.loads.items():
            say(f"{name}: first load {load}")
    sys.exit(0 if seen.running else 1)


@connector.command()
@click.option("--all", "everything", is_flag=True, help="Also a task that has not failed.")
@click.pass_context
def restart(ctx: click.Context, everything: bool) -> None:
    """Restart a FAILED connector or task."""
    from streams.capture import connector_name
    from streams.neighbours import connect

    settings = settings_from(ctx)
    connect(settings).restart(connector_name(settings), only_failed=not everything)
    say("restart asked for")
