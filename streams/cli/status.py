"""`upwell status`: one screen of what works, and what to do about what does not."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from connectors.postgres.capture_state import SILENT_SECONDS
from streams.cli.context import home_from, settings_from
from streams.cli.table import console, duration, one_line, print_whole, seconds, table
from streams.settings import Settings
from streams.status import Facts, Finding, findings, look


@click.command()
@click.option("--json", "json_", is_flag=True, help="For a machine.")
@click.pass_context
def status(ctx: click.Context, json_: bool) -> None:
    """Stack, connector, slot, lag, what is pending, workers; what is wrong and the next step. Exit 1 if anything is."""
    settings = settings_from(ctx)
    facts = look(settings)
    wrong = findings(facts, settings)
    if json_:
        click.echo(json.dumps(_answer(facts, wrong), indent=2, default=str))
    else:
        _print(facts, wrong, settings, home_from(ctx), console())
    ctx.exit(1 if wrong else 0)


def _answer(facts: Facts, wrong: list[Finding]) -> dict[str, Any]:
    eta = {name: each.eta_seconds for name, each in facts.forecasts.items()}
    return {**asdict(facts), "eta_seconds": eta, "wrong": [asdict(each) for each in wrong]}


def _print(facts: Facts, wrong: list[Finding], settings: Settings, home: Path, screen: Console) -> None:
    if (home / "stack.env").exists():
        from infra import stack

        found = stack.status(home)
        parts = ", ".join(f"{each.name} {'runs' if each.pid else 'STOPPED'}" for each in found)
        hint = "" if all(each.pid for each in found) else "; `upwell up` starts what is stopped"
        screen.print(f"local stack: {parts}{hint}")
    connector, slot = facts.connector, facts.slot
    if connector is not None:
        screen.print(f"connector {connector.name}: {connector.connector}, task {connector.task}")
    if slot is not None:
        behind = "-" if slot.behind_bytes is None else f"{slot.behind_bytes / 1024**2:.1f} MiB"
        screen.print(
            f"slot {slot.name}: {'read' if slot.active else 'not read'}, {behind} behind, {slot.wal_status}"
        )
    if facts.report is not None:
        _print_collections(facts, screen)
        for worker in facts.report.workers:
            state = (
                "lives"
                if worker.seen_seconds < SILENT_SECONDS
                else f"silent for {duration(worker.seen_seconds)}"
            )
            screen.print(f"worker {worker.slot} on {worker.host}, pid {worker.pid}: {state}")
        if not any(monitor.seen_seconds < SILENT_SECONDS for monitor in facts.report.monitors):
            screen.print("no monitor runs, so no verdict is known: `upwell monitor`")
    if not wrong:
        screen.print("\nNothing is wrong.")
    for each in wrong:
        screen.print(f"\nWRONG  {one_line(each.problem, 400)}\n  ->   {each.next_step}")


def _print_collections(facts: Facts, screen: Console) -> None:
    report = facts.report
    assert report is not None
    columns = (
        "collection",
        "verdict",
        "first load",
        "in Kafka",
        "live",
        "backfill",
        "ETA",
        "oldest",
        "dead",
        "p50 s",
        "p95 s",
    )
    made = table(None, *columns, left=columns[:3])
    for name, found in report.collections.items():
        ahead = "-" if facts.ahead is None else str(facts.ahead.get(name, 0))
        made.add_row(
            name,
            found.verdict.state.value,
            found.load.state,
            ahead,
            str(found.pending["live"]),
            str(found.pending["backfill"]),
            duration(facts.forecasts[name].eta_seconds if name in facts.forecasts else None),
            duration(found.oldest_pending_seconds),
            str(found.dead_letters),
            seconds(found.delay.p50),
            seconds(found.delay.p95),
        )
    print_whole(screen, made)
