"""`upwell reconcile`: source and sink compared by checksums, key by key where they differ; repaired if asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import click

from schemas.reconcile import Difference, Kind
from streams.cli.completion import collection_names
from streams.cli.context import settings_from
from streams.cli.table import one_line

if TYPE_CHECKING:
    from streams.reconcile.report import Found, Report

#: Keys that a person is shown of each kind.
SHOWN: Final = 10
LONGEST: Final = 80


@click.command()
@click.argument("collection", shell_complete=collection_names)
@click.option("--repair", is_flag=True, help="Mend what is wrong, and compare it again.")
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="Recompute the vectors of so many documents; 0 loads no model.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for what is in flight, and for what is repaired, to arrive.",
)
@click.option("--json", "json_", is_flag=True, help="For a machine; all keys.")
@click.pass_context
def reconcile(
    ctx: click.Context, collection: str, *, repair: bool, sample: int, wait: float, json_: bool
) -> None:
    """Compare COLLECTION with its source, beside live traffic. Exit 1 if something is wrong, or still is."""
    from streams.app import recipe
    from streams.models import encoder_of
    from streams.reconcile.run import Options, reconcile

    settings = settings_from(ctx)
    report = reconcile(
        settings,
        collection,
        Options(repair, sample, wait),
        progress=_progress,
        make_recipe=lambda live: recipe(settings, live, encoder_of(settings, live.model, _progress)),
    )
    if json_:
        click.echo(json.dumps(report.answer(), indent=2, ensure_ascii=False))
    else:
        _print(report)
    if not report.is_fine:
        ctx.exit(1)


def _progress(line: str) -> None:
    click.echo(line, err=True)


def _print(report: Report) -> None:
    click.echo(
        f"{report.collection}: {report.source_rows} rows at the source, {report.sink_rows} in the sink, "
        f"{report.ranges_differ} of {report.ranges} ranges differ, {report.sampled} documents embedded again"
    )
    for name, why in report.left_out.items():
        click.echo(f"not compared: column {name}, {why}")
    _print_kinds("", report.found)
    if report.beyond:
        click.echo(f"{report.beyond} more differ and were not looked at: repair these first")
    if report.in_flight:
        click.echo(f"{len(report.in_flight)} kept changing, no difference is certain of them")
    if report.repaired is not None:
        _print_kinds("repaired: ", report.found, report.repaired)
        _print_kinds("still ", report.left)
    _print_end(report)


def _print_kinds(what: str, found: Found, counts: Mapping[Kind, int] | None = None) -> None:
    """A line for each kind, with its first keys; with `counts` only how many."""
    from streams.reconcile.report import WORDS

    for kind in Kind:
        if counts is not None and counts.get(kind):
            click.echo(f"{what}{counts[kind]} {WORDS[kind]}")
        elif counts is None and found.get(kind):
            click.echo(f"{what}{len(found[kind])} {WORDS[kind]}: {_keys(found[kind])}")


def _print_end(report: Report) -> None:
    if report.is_fine:
        click.echo("nothing is wrong" if not any(report.found.values()) else "nothing is wrong any more")
    elif report.repaired is None:
        click.echo(
            f"next: upwell reconcile {report.collection} --repair; upwell explain {report.collection} KEY"
        )


def _keys(differences: list[Difference]) -> str:
    shown = [
        one_line(each.key, LONGEST) + (f" ({', '.join(each.notes)})" if each.notes else "")
        for each in differences[:SHOWN]
    ]
    return ", ".join(shown) + (", ..." if len(differences) > SHOWN else "")
