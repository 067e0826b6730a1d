"""`upwell stack`: the local stack of DESIGN 9."""

from __future__ import annotations

import json
from typing import Final

import click

from streams.cli.context import home_from, one_clear_line, say

LOGS: Final = ("source", "sink", "kafka", "registry", "connect", "keeper")


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
        if name not in PORTS or not number.isdecimal() or not 0 < int(number) < 65536:
            raise click.UsageError(
                f"--port {each}: write NAME=PORT, 1 to 65535, with one of {', '.join(PORTS)}"
            )
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
            says = f"running, pid {each.pid}" if each.pid else f"not running, log in {each.log}"
            click.echo(f"{each.name:<10} {says}")
    ctx.exit(0 if all(each.pid for each in found) else 1)


@stack.command()
@click.argument("component", type=click.Choice(LOGS), required=False)
@click.option("-n", "lines", default=40, show_default=True, help="How many of the last lines.")
@click.pass_context
def logs(ctx: click.Context, component: str | None, lines: int) -> None:
    """The last lines of a component's log; without one, of all logs."""
    from infra.stack.processes import tail

    for name in LOGS if component is None else [component]:
        path = home_from(ctx) / "log" / f"{name}.log"
        if component is None:
            click.secho(f"==> {path}", bold=True)
        click.echo(tail(path, lines))
