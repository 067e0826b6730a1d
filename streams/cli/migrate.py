"""`upwell migrate`: source and sink in line with the spec. Never drops anything of the user's."""

from __future__ import annotations

import click

from streams.cli.context import say, settings_from


@click.group(invoke_without_command=True)
@click.pass_context
def migrate(ctx: click.Context) -> None:
    """Bring source and sink in line with the spec; without a subcommand, both."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(source)
        ctx.invoke(sink)


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

    for line in migrate_sink(settings_from(ctx)) or ["nothing to do"]:
        say(f"sink: {line}")
