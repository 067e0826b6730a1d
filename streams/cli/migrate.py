"""`upwell migrate`: source and sink in line with the spec. Never drops anything unasked."""

from __future__ import annotations

import click

from streams.cli.context import say, settings_from


@click.group(invoke_without_command=True)
@click.option(
    "--remove",
    multiple=True,
    metavar="COLLECTION",
    help="Remove a collection that the spec no longer has, with its records and vectors; may be repeated.",
)
@click.pass_context
def migrate(ctx: click.Context, remove: tuple[str, ...]) -> None:
    """Bring source and sink in line with the spec; without a subcommand, both.

    Where something is captured already, topics and connector follow, and tables that are new are loaded; workers notice
    by themselves.
    """
    from streams.migration import migrate as bring

    if ctx.invoked_subcommand is None:
        bring(settings_from(ctx), say, remove=remove)
        say("source and sink are in line with the spec")
    elif remove:
        raise click.UsageError("--remove is for `upwell migrate` without a subcommand")


@migrate.command()
@click.option(
    "--print", "only_print", is_flag=True, help="Print the SQL for the owner of the tables; run nothing."
)
@click.pass_context
def source(ctx: click.Context, only_print: bool = False) -> None:
    """Schema upwell and the publication at the source. No table of the user's is altered."""
    from streams.migration import migrate_source, source_script

    settings = settings_from(ctx)
    if only_print:
        click.echo(source_script(settings), nl=False)
        return
    for line in migrate_source(settings) or ["nothing to do"]:
        say(f"source: {line}")


@migrate.command()
@click.pass_context
def sink(ctx: click.Context) -> None:
    """Tables, views and functions of schema upwell in the sink."""
    from streams.migration import migrate_sink

    for line in migrate_sink(settings_from(ctx), say) or ["nothing to do"]:
        say(f"sink: {line}")
