"""`upwell report`: how fresh the vectors are, how long changes take, why the slowest were slow, and what was saved."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import Any, Final

import click

from schemas.freshness import State
from streams.cli.completion import collection_names
from streams.cli.context import settings_from
from streams.cli.report_text import render
from streams.freshness.report import CollectionReport, Report, as_json, build_report
from streams.settings import Settings

LAST_HOUR: Final = timedelta(hours=1)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
#: What `--fail-on` can name, and when it holds of a collection.
CONDITIONS: Final[Mapping[str, Callable[[CollectionReport], bool]]] = {
    "stale": lambda each: each.verdict.state is State.STALE,
    "unknown": lambda each: each.verdict.state is State.UNKNOWN,
    "incomplete": lambda each: each.verdict.state is State.INCOMPLETE,
    "budget": lambda each: each.budget_used_up,
}


class Window(click.ParamType):
    """A length of time: `90s`, `30m`, `1h`, `7d`."""

    name = "window"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"([1-9]\d{0,6})([smhd])", value)
        if not match:
            self.fail(f"{value!r} is no length of time: write 30m, 1h or 7d", param, ctx)
        window = timedelta(**{_UNITS[match[2]]: int(match[1])})
        if window > timedelta(days=366):
            self.fail(f"{value!r} is longer than a year", param, ctx)
        return window


def _print_schema(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    """Needs no settings and no sink."""
    if asked and not ctx.resilient_parsing:
        schema = resources.files("streams.freshness") / "report.schema.json"
        click.echo(schema.read_text(encoding="utf-8"), nl=False)
        ctx.exit()


@click.command()
@click.option("--json", "json_", is_flag=True, help="For a machine: the same as --format json.")
@click.option("--format", "format_", type=click.Choice(["text", "json", "html"]), help="[default: text]")
@click.option("--since", type=Window(), default="1h", show_default=True, help="How far back: 30m, 1h, 7d.")
@click.option("--collection", metavar="C", help="Only this one.", shell_complete=collection_names)
@click.option(
    "--fail-on",
    type=click.Choice(list(CONDITIONS)),
    multiple=True,
    help="Exit 1 only if this holds of a collection; more than once: if any does.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write it to this file.")
@click.option("--no-keys", is_flag=True, help="Leave keys out of the HTML.")
@click.option(
    "--json-schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON Schema of --json and exit.",
)
@click.pass_context
def report(
    ctx: click.Context,
    *,
    json_: bool,
    format_: str | None,
    since: timedelta,
    collection: str | None,
    fail_on: tuple[str, ...],
    output: Path | None,
    no_keys: bool,
) -> None:
    """Verdicts, SLOs, delay by stage, what is pending, work saved, and the slowest changes.

    Without --fail-on, exit 1 if a verdict is not FRESH.
    """
    if json_ and format_ not in (None, "json"):
        raise click.UsageError(f"--json and --format {format_} contradict each other")
    form = "json" if json_ else format_ or "text"
    if output is not None and form != "html":
        raise click.UsageError("--output is for --format html")
    if no_keys and form != "html":
        raise click.UsageError("--no-keys is for --format html")
    found = read(settings_from(ctx), since, collection)
    if form == "html":
        from streams.freshness.report_html import as_html

        page = as_html(found, keys=not no_keys)
        if output is None:
            click.echo(page, nl=False)
        else:
            output.write_text(page, encoding="utf-8")
            click.echo(f"the report is in {output}", err=True)
    else:
        show(found, json_=form == "json")
    if failed(found, fail_on):
        sys.exit(1)


def failed(found: Report, fail_on: tuple[str, ...]) -> bool:
    """Whether one of the conditions holds of a collection; without any, whether a verdict is not FRESH."""
    if not fail_on:
        return any(each.verdict.state is not State.FRESH for each in found.collections.values())
    return any(CONDITIONS[name](each) for each in found.collections.values() for name in fail_on)


def read(settings: Settings, window: timedelta = LAST_HOUR, collection: str | None = None) -> Report:
    """Read the sink. Raises SinkUnavailable, SettingsError for an unknown collection."""
    from connectors.postgres.capture_state import connect_sink
    from connectors.postgres.forecast import read_queue
    from connectors.postgres.read import read_report
    from streams.freshness.forecast import forecast_of

    slos = {name: spec.slo for name, spec in settings.collections.items()}
    with connect_sink(settings.sink.dsn) as connection:
        found = build_report(read_report(connection, window, collection), slos)
        forecasts = forecast_of(read_queue(connection), backfill_share=settings.worker.backfill_share)
    return replace(
        found, forecasts={name: forecasts[name] for name in found.collections if name in forecasts}
    )


def show(found: Report, *, json_: bool = False) -> None:
    if json_:
        click.echo(json.dumps(as_json(found), indent=2, ensure_ascii=False))
    else:
        render(found)


def print_report(settings: Settings) -> None:
    """The last hour's, whatever the verdicts. Raises SinkUnavailable."""
    show(read(settings))
