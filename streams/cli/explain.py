"""`upwell explain`: which change, text and model made a key's vectors; of a deleted key, what is left of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import click
from rich.console import Console

from schemas.readings import Explanation
from streams.cli.completion import collection_names
from streams.cli.context import settings_from
from streams.cli.table import console, one_line, table
from streams.explanation import explanation

EXCERPT: Final = 200


@click.command()
@click.argument("collection", shell_complete=collection_names)
@click.argument("key", nargs=-1, required=True)
@click.option("--json", "json_", is_flag=True, help="For a machine; texts are whole.")
@click.pass_context
def explain(ctx: click.Context, collection: str, key: tuple[str, ...], json_: bool) -> None:
    """All that is known of one KEY: its values in order, a=1,b=x, or a JSON array. Exit 1 if nothing is."""
    settings = settings_from(ctx)
    from connectors.postgres.capture_state import connect_sink
    from connectors.postgres.explain import explain as read

    with connect_sink(settings.sink.dsn) as connection:
        found = read(connection, collection, key)
    answer = explanation(
        found,
        timedelta(hours=settings.kafka.retention_hours),
        timedelta(days=settings.sink.audit_retention_days),
    )
    if json_:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False, default=str))
    else:
        _print(found, answer, console())
    if not found.known:
        ctx.exit(1)


def _print(found: Explanation, answer: Mapping[str, Any], screen: Console) -> None:
    screen.print(f"{found.collection} {found.key}, a row of {found.table}: {answer['state']}")
    if not found.known:
        screen.print("Nothing is known of it: it was never taken in, or the audit has forgotten it.")
        return
    if found.record is not None:
        _print_record(answer["record"], screen)
    if answer["text"] is not None:
        screen.print(f"text: {one_line(answer['text'], EXCERPT)}")
    for each in answer["generations"]:
        screen.print(
            f"generation {each['number']} ({each['state']}), {each['model']}: {len(each['chunks'])} chunks"
        )
        for chunk in each["chunks"]:
            when, text = chunk["embedded_at"][:19], one_line(chunk["chunk_text"], 60)
            screen.print(f"  {chunk['chunk_no']:>3}  {chunk['chunk_hash'][:12]}  embedded {when}  {text}")
    _print_waiting(answer, screen)
    _print_audit(answer, screen)
    if answer["remains"]:
        made = table(
            "What is left of it", "where", "what", "until", left=("where", "what", "until"), wrap="until"
        )
        for row in answer["remains"]:
            made.add_row(
                row["place"], row["what"], " ".join(filter(None, [(row["until"] or "")[:10], row["how"]]))
            )
        screen.print(made)


def _print_waiting(answer: Mapping[str, Any], screen: Console) -> None:
    """Why the newest text is not searchable."""
    for row in answer["pending"]:
        since = row["pending_since"] or "its load"
        by = f", claimed by {row['claimed_by']}" if row["claimed_by"] else ""
        failed = f", failed {row['attempts']} times: {row['last_error']}" if row["attempts"] else ""
        screen.print(
            f"pending in generation {row['generation']}, lane {row['lane']}, since {since}{by}{failed}"
        )
    if answer["in_doubt"] is not None:
        screen.print("in doubt since a shift of keys: it is looked for at the source")
    for row in answer["dead_letters"]:
        state = "open" if row["closed_at"] is None else f"closed, {row['closed_by']}"
        screen.print(
            f"dead letter {row['id']} ({row['stage']}, {state}): {row['error_class']}: {row['error']}"
        )


def _print_record(record: Mapping[str, Any], screen: Console) -> None:
    how = "streamed" if record["streamed"] else "from a snapshot"
    change = f"lineage {record['lineage']}, offset {record['offset']}, {how}"
    screen.print(f"change: {change}, lsn {record['lsn']}, transaction {record['transaction_id']}")
    screen.print(f"committed {record['committed_at']}, taken in {record['taken_in_at']}")
    if record["text_hash"]:
        screen.print(f"text hash: {record['text_hash']}")


def _print_audit(answer: Mapping[str, Any], screen: Console) -> None:
    if not answer["audit"]:
        return
    columns = ("at", "action", "topic/partition@offset", "lsn", "transaction", "generation", "chunks")
    made = table(f"Audit, newest first, of {answer['audit_rows']} rows", *columns, left=columns[:3])
    for row in answer["audit"]:
        place = f"{row['topic']}/{row['partition']}@{row['offset']}" if row["topic"] else f"@{row['offset']}"
        rest = (row["lsn"], row["transaction_id"], row["generation"], row["chunks"])
        made.add_row(
            row["at"][:19], row["action"], place, *("" if each is None else str(each) for each in rest)
        )
    screen.width = max(screen.width, 120)
    screen.print(made)
