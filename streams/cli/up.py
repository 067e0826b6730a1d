"""`upwell up` and `upwell down`: the whole line on this machine, in the background."""

from __future__ import annotations

import time

import click

from streams.cli.context import home_from, local_settings, say, spec_from
from streams.settings import Settings


@click.command()
@click.option("--sample/--no-sample", default=True, help="Load the sample shop into an empty source.")
@click.option(
    "--deadline-seconds",
    type=click.FloatRange(min=0),
    default=900.0,
    show_default=True,
    help="Give up on the first load after this.",
)
@click.pass_context
def up(ctx: click.Context, sample: bool, deadline_seconds: float) -> None:
    """Start stack, capture, workers and monitor; return when the first load is searchable. Again: restart what died."""
    from streams.local import Line

    spec, home = spec_from(ctx), home_from(ctx)
    local_settings(spec, home)  # what is wrong in them is said before anything starts
    line = Line(home, say)
    line.start_stack()
    settings = local_settings(spec, home)
    line.prepare(settings, sample=sample)
    line.start_worker(spec)
    line.start_monitor(spec, settings.monitor.port)
    line.load(settings, deadline=time.monotonic() + deadline_seconds)
    page = line.monitor_url(settings)
    say("up: " + _addresses(settings))
    if page:
        say(f"freshness: {page}")


def _addresses(settings: Settings) -> str:
    """Where applications connect, without a password."""
    from psycopg.conninfo import conninfo_to_dict

    sink = conninfo_to_dict(settings.sink.dsn)
    return f"psql -h {sink.get('host')} -p {sink.get('port')} -U {sink.get('user')} {sink.get('dbname')}"


@click.command()
@click.pass_context
def down(ctx: click.Context) -> None:
    """Stop monitor, workers and stack; what they stored stays for the next `up`."""
    from streams.local import Line

    line = Line(home_from(ctx), say)
    line.stop_monitor()
    line.stop_worker()
    line.stop_stack()
    say("down")
