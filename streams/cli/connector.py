"""`upwell connector`: the Debezium connector and its loads."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Final

import click

from streams.cli.context import confirm, say, settings_from
from streams.settings import Settings

WAIT: Final = click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Then wait so long until all is searchable; a worker must run.",
)


@click.group()
def connector() -> None:
    """Apply, look at, restart, rebuild and delete the Debezium connector."""


@connector.command()
@click.option("--no-load", is_flag=True, help="Do not ask for loads, nor follow them.")
@WAIT
@click.pass_context
def apply(ctx: click.Context, no_load: bool, wait: float) -> None:
    """Create topics and connector, and load what is not loaded yet. Killed and run again, it goes on."""
    from streams.capture import apply as apply_capture

    settings = settings_from(ctx)
    apply_capture(settings, say, load=not no_load)
    _wait(settings, wait)


def _wait(settings: Settings, seconds: float) -> None:
    from streams.capture import wait_searchable

    if seconds and not wait_searchable(settings, time.monotonic() + seconds, say):
        click.echo("not everything is searchable yet", err=True)
        sys.exit(1)


@connector.command()
@click.option("--new-lineage", is_flag=True, help="Begin another also while a rebuild is under way.")
@WAIT
@click.pass_context
def rebuild(ctx: click.Context, new_lineage: bool, wait: float) -> None:
    """After lost changes: new slot and topics, every table read again.

    What the source no longer has is removed. Searches go on, and texts that did not change keep their vectors. Killed
    and run again, it goes on.
    """
    from streams.rebuild import rebuild as rebuild_capture

    settings = settings_from(ctx)
    rebuild_capture(settings, say, new_lineage=new_lineage)
    _wait(settings, wait)


@connector.command()
@click.option("--offsets", is_flag=True, help="Also the position that Connect has stored.")
@click.option("--slot", is_flag=True, help="Also the replication slot: changes from now on are lost.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def delete(ctx: click.Context, offsets: bool, slot: bool, yes: bool) -> None:
    """Delete the connector. What it has sent stays; `connector apply` makes it anew."""
    from streams.deletion import consequences
    from streams.deletion import delete as delete_connector

    settings = settings_from(ctx)
    for line in consequences(settings, offsets=offsets, slot=slot):
        say(line)
    confirm(yes)
    delete_connector(settings, say, offsets=offsets, slot=slot)


@connector.command()
@click.option("--json", "as_json", is_flag=True, help="For a machine.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """State of connector, task and loads; exit 1 unless it runs."""
    from streams.capture import look

    seen = look(settings_from(ctx))
    if as_json:
        say(json.dumps(dataclasses.asdict(seen), default=str))
    else:
        cause = f": {seen.cause}" if seen.cause else ""
        say(f"connector {seen.name}: {seen.connector}, task {seen.task}{cause}")
        for name, load in seen.loads.items():
            say(f"{name}: load {load}")
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
