"""`upwell doctor`: what is wrong, before it fails, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

import click
from rich.text import Text

from streams.cli.context import settings_from
from streams.cli.table import console, one_line

_STYLES = {"ok": "green", "not yet": "cyan", "warn": "yellow", "FAIL": "bold red", "skipped": "dim"}


@click.command()
@click.option("--json", "json_", is_flag=True, help="For a machine.")
@click.option("--no-model", is_flag=True, help="Do not load the model, which takes seconds.")
@click.option(
    "--sql",
    "database",
    is_flag=False,
    flag_value="both",
    type=click.Choice(["source", "sink", "both"]),
    help="Print the grants for the administrator of a database instead; without a value, of both.",
)
@click.pass_context
def doctor(ctx: click.Context, json_: bool, no_model: bool, database: str | None) -> None:
    """Look at every neighbour, right and setting; for what fails, the next step. Writes nothing. Exit 1 on a FAIL."""
    settings = settings_from(ctx)
    if database is not None:
        from streams.grants import grants

        click.echo(grants(settings, database), nl=False)
        return
    from streams.doctor import Check, bad, examine

    found: list[Check] = []
    screen = console()

    def shown(checks: Iterable[Check]) -> None:
        before = ""
        for check in checks:
            found.append(check)
            if json_:
                continue
            if check.neighbour != before:
                screen.print(Text(check.neighbour, style="bold"))
                before = check.neighbour
            screen.print(_line(check), soft_wrap=True)

    shown(examine(settings, model=not no_model))
    failed = bad(found)
    if json_:
        click.echo(json.dumps([asdict(check) for check in found], indent=2))
    else:
        warnings = sum(check.state == "warn" for check in found)
        screen.print(f"\n{len(found)} checks: {len(failed)} failed, {warnings} warnings")
    ctx.exit(1 if failed else 0)


def _line(check: object) -> Text:
    from streams.doctor import Check

    assert isinstance(check, Check)
    says = f"({one_line(check.says, 400)})" if check.state == "skipped" else one_line(check.says, 400)
    line = Text.assemble("  ", (f"{check.state:<8}", _STYLES[check.state]), f" {check.name}: {says}")
    if check.next_step:
        line.append(f" -> {one_line(check.next_step, 400)}")
    return line
