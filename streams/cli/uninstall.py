"""`upwell uninstall`."""

from __future__ import annotations

import sys

import click

from streams.cli.context import say, settings_from


@click.command()
@click.option("--source", "only", flag_value="source", multiple=True, help="Only what is at the source.")
@click.option(
    "--kafka", "only", flag_value="kafka", multiple=True, help="Only connector, topics and consumer group."
)
@click.option("--sink", "only", flag_value="sink", multiple=True, help="Only what is in the sink.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Go on without a neighbour that is away; what it has stays.")
@click.pass_context
def uninstall(ctx: click.Context, only: tuple[str, ...], yes: bool, force: bool) -> None:
    """Say what upwell made, and drop it.

    No table of yours is touched. Killed and run again, it goes on. The limits may be combined; without one, all goes.
    """
    from streams.uninstall import PARTS, STAYS, planned

    settings = settings_from(ctx)
    parts = [part for part in PARTS if part in only] or list(PARTS)
    with planned(settings, parts, say, force=force) as plan:
        for away in plan.away:
            click.echo(f"upwell: {away}: what it has stays", err=True)
        if not plan.items:
            say(f"nothing is left of deployment {settings.name} in {', '.join(parts)}")
            return
        say(f"of deployment {settings.name} goes:")
        for item in plan.items:
            say(f"  {item.words}")
        say("stays:")
        for line in STAYS:
            say(f"  {line}")
        if not yes:
            _ask(settings.name)
        plan.run(say)


def _ask(name: str) -> None:
    """Leave unless a person says yes."""
    if not sys.stdin.isatty():
        click.echo("upwell: nothing is dropped: give --yes", err=True)
        sys.exit(2)
    if not click.confirm(f"Drop all of this? Changes of {name} are then captured no more"):
        click.echo("upwell: nothing is dropped", err=True)
        sys.exit(2)
