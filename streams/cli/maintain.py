"""`upwell maintain`: what keeps searches quick over months, done beside workers and readers."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from streams.cli.completion import collection_names
from streams.cli.context import say, settings_from
from streams.cli.table import console, print_whole, table

if TYPE_CHECKING:
    from streams.upkeep import Stock

MIB: Final = 1024**2


@click.command()
@click.argument("collection", nargs=-1, shell_complete=collection_names)
@click.option("--check", is_flag=True, help="Only say what is due; exit 1 if anything is.")
@click.option(
    "--memory",
    metavar="SIZE",
    help="maintenance_work_mem of the builds, e.g. 2GB; otherwise the server's. A build is much quicker where it fits.",
)
@click.option("--json", "json_", is_flag=True, help="For a machine.")
@click.pass_context
def maintain(
    ctx: click.Context, collection: tuple[str, ...], *, check: bool, memory: str | None, json_: bool
) -> None:
    """Build indexes that are missing, INVALID, bloated or of other parameters, and vacuum; of COLLECTION, or of all.

    Beside workers and readers; with the login that `upwell migrate` uses. Exit 1 if something is still due.
    """
    from streams.upkeep import look, maintain

    settings = settings_from(ctx)
    tell = _progress if json_ else say
    stock = look(settings, collection) if check else maintain(settings, collection, tell, memory)
    if json_:
        click.echo(json.dumps(_answer(stock), indent=2))
    else:
        _print(stock, checked=check)
    ctx.exit(1 if stock.due else 0)


def _progress(line: str) -> None:
    """Beside the answer, not in it."""
    click.echo(line, err=True)


def _answer(stock: Stock) -> dict[str, Any]:
    vectors = [
        {**asdict(each), "wanted": each.wanted.model_dump(), "bloat": each.bloat} for each in stock.vectors
    ]
    return {"vectors": vectors, "tables": [asdict(each) for each in stock.tables], "due": stock.due}


def _print(stock: Stock, *, checked: bool) -> None:
    columns = ("table", "state", "rows", "dead", "MiB", "index MiB", "of its need", "m", "ef")
    made = table(None, *columns, left=("table", "state"))
    for each in stock.vectors:
        used, facts = each.searchable, each.table
        made.add_row(
            facts.name,
            each.state,
            str(facts.rows),
            str(facts.dead),
            f"{facts.bytes / MIB:.1f}",
            "none" if used is None else f"{used.bytes / MIB:.1f}",
            "-" if each.bloat is None else f"{each.bloat:.1f}x",
            "-" if used is None else str(used.m),
            "-" if used is None else str(used.ef_construction),
        )
    for other in stock.tables:
        size = f"{other.bytes / MIB:.1f}"
        made.add_row(other.name, "", str(other.rows), str(other.dead), size, "", "", "", "")
    screen = console()
    print_whole(screen, made)
    for each in stock.vectors:
        if each.waits:
            screen.print(f"{each.place}: no index yet, its rows are still being embedded")
    for line in stock.due:
        screen.print(f"due    {line}")
    if not stock.due:
        screen.print("nothing is due")
    elif checked:
        screen.print("next: upwell maintain")
    else:
        screen.print("a transaction that is open for long may keep dead rows: see upwell doctor")
