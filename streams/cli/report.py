"""`upwell report`: how long changes take until they are searchable, what waits, and what was saved."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, timedelta
from typing import Any, Final

import click
from rich.table import Table

from streams.cli.completion import collection_names
from streams.cli.context import settings_from
from streams.cli.table import console, duration, percent, print_whole, seconds, table
from streams.freshness.report import CollectionReport, Delays, Report, as_json, build_report
from streams.settings import Settings

LEFT: Final = ("collection", "stage", "first load")
LAST_HOUR: Final = timedelta(hours=1)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


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


@click.command()
@click.option("--json", "json_", is_flag=True, help="For a machine.")
@click.option("--window", type=Window(), default="1h", show_default=True, help="How far back: 30m, 1h, 7d.")
@click.option("--collection", metavar="C", help="Only this one.", shell_complete=collection_names)
@click.pass_context
def report(ctx: click.Context, json_: bool, window: timedelta, collection: str | None) -> None:
    """Propagation delay by stage, what is pending, dead letters, and work saved."""
    print_report(settings_from(ctx), window, collection, json_=json_)


def print_report(
    settings: Settings, window: timedelta = LAST_HOUR, collection: str | None = None, *, json_: bool = False
) -> None:
    """Read the sink and print its report. Raises SinkUnavailable, SettingsError for an unknown collection."""
    from connectors.postgres.capture_state import connect_sink
    from connectors.postgres.read import read_report

    with connect_sink(settings.sink.dsn) as connection:
        found = build_report(read_report(connection, window, collection))
    if json_:
        click.echo(json.dumps(as_json(found), indent=2, ensure_ascii=False))
    else:
        render(found)


def render(found: Report) -> None:
    """Tables for a person."""
    screen = console()
    at = f"{found.evaluated_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    screen.print(f"The last {duration(found.window_seconds)} until {at}\n")
    for each in (_delays(found), _state(found), _work(found)):
        print_whole(screen, each)
    for line in _notes(found):
        screen.print(line)


def _delays(found: Report) -> Table:
    """One block a collection: the total, then its stages."""
    columns = ("changes", "p50", "p95", "p99", "max", "mean", "share")
    made = table("Seconds from commit until searchable", "collection", "stage", *columns, left=LEFT)
    for name, each in found.collections.items():
        made.add_row(name, "total", *_numbers(each.delay), "")
        for stage, of in each.stages.items():
            mark = " ~" if of.approximate else ""
            made.add_row("", f"  {stage}{mark}", *_numbers(of.delays), percent(of.share))
        made.add_section()
    return made


def _numbers(delays: Delays) -> Iterator[str]:
    yield str(delays.count)
    for value in (delays.p50, delays.p95, delays.p99, delays.max, delays.mean):
        yield seconds(value)


def _state(found: Report) -> Table:
    columns = ("pending live", "backfill", "oldest pending", "dead letters")
    made = table("Now", "collection", "first load", *columns, left=LEFT)
    for name, each in found.collections.items():
        counts = (str(each.pending["live"]), str(each.pending["backfill"]))
        made.add_row(
            name, _load(each), *counts, duration(each.oldest_pending_seconds), str(each.dead_letters)
        )
    return made


def _load(each: CollectionReport) -> str:
    load = each.load
    if load.rows is None or load.state == "complete":
        return load.state
    return f"{load.state}: {percent(load.searchable)} of {load.rows} rows"


def _work(found: Report) -> Table:
    outcomes = ("applied", "unchanged", "superseded", "deleted", "other")
    made = table("Work", "collection", *outcomes, "encoded", "kept", "copied", "saved", left=LEFT)
    for name, each in found.collections.items():
        named = [each.outcomes[outcome] for outcome in outcomes[:-1]]
        numbers = [*named, each.taken_in - sum(named), *each.chunks.values()]
        made.add_row(name, *(str(number) for number in numbers), percent(each.chunks_saved))
    return made


def _notes(found: Report) -> Iterator[str]:
    yield "~ also crosses the clock of Kafka Connect. share: of the seconds spent in all stages."
    yield "applied ... other: changes. encoded, kept, copied: chunks; saved: those not encoded."
    for name, each in found.collections.items():
        if each.clock_negative:
            yield f"{name}: {each.clock_negative} delays were negative and count as 0: clocks differ."
    if not found.workers:
        yield "No worker has ever run."
    for worker in found.workers:
        yield f"Worker {worker.slot} on {worker.host} (pid {worker.pid}) was seen {duration(worker.seen_seconds)} ago."
