"""`upwell stack`: the local stack of DESIGN 9."""

from __future__ import annotations

import json

import click

from streams.cli.context import home_from, one_clear_line, say


@click.group()
def stack() -> None:
    """Kafka, Connect, registry, source and sink on this machine. State and logs are in .upwell beside the spec."""


@stack.command()
@click.option("--port", "ports", multiple=True, metavar="NAME=PORT", help="A fixed port, e.g. kafka=9092.")
@click.pass_context
def up(ctx: click.Context, ports: tuple[str, ...]) -> None:
    """Start what does not run, and return when everything is ready."""
    from infra import stack as local
    from infra.stack.environment import PORTS

    wanted = {}
    for each in ports:
        name, _, number = each.partition("=")
        if name not in PORTS or not number.isdigit():
            raise click.UsageError(f"--port {each}: write NAME=PORT with one of {', '.join(PORTS)}")
        wanted[name] = int(number)
    with one_clear_line():
        local.up(home_from(ctx), progress=say, ports=wanted)
        say(f"stack is up; addresses in {home_from(ctx) / 'stack.env'}")


@stack.command()
@click.pass_context
def down(ctx: click.Context) -> None:
    """Stop everything; what was stored stays."""
    from infra import stack as local

    with one_clear_line():
        local.down(home_from(ctx))
        say("stack is down")


@stack.command()
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Which components run. Exit 1 if one does not."""
    from infra import stack as local

    found = local.status(home_from(ctx))
    if as_json:
        click.echo(json.dumps({each.name: each.pid for each in found}))
    else:
        for each in found:
            click.echo(f"{each.name:<10} {'running, pid ' + str(each.pid) if each.pid else 'not running'}")
    ctx.exit(0 if all(each.pid for each in found) else 1)


@stack.command()
@click.argument("component", type=click.Choice(["source", "sink", "kafka", "registry", "connect", "keeper"]))
@click.option("-n", "lines", default=40, show_default=True, help="How many of the last lines.")
@click.pass_context
def logs(ctx: click.Context, component: str, lines: int) -> None:
    """The last lines of a component's log."""
    from infra.stack.processes import tail

    click.echo(tail(home_from(ctx) / "log" / f"{component}.log", lines))
