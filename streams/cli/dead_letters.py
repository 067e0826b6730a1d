"""`upwell dead-letters`: what could not be taken in or embedded; looked at, replayed, waived."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from schemas.errors import SettingsError, UpwellError
from streams.cli.context import say, settings_from
from streams.cli.table import console, duration, one_line, table

if TYPE_CHECKING:
    from schemas.letters import StoredLetter
    from streams.replay import Replayed
    from streams.settings import Settings

EXCERPT: Final = 400
LEFT: Final = ("collection", "stage", "key", "topic/partition@offset", "error", "committed")


@click.group("dead-letters")
def dead_letters() -> None:
    """Records that could not be taken in, and texts that could not be embedded."""


@dead_letters.command("list")
@click.argument("collection", required=False)
@click.option("--all", "closed", is_flag=True, help="Closed ones too.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@click.option("--json", "json_", is_flag=True, help="For a machine.")
@click.pass_context
def list_(ctx: click.Context, collection: str | None, closed: bool, limit: int, json_: bool) -> None:
    """Open ones of COLLECTION, or of all; without texts and bytes."""
    settings = settings_from(ctx)
    from connectors.postgres.capture_state import connect_sink
    from connectors.postgres.dead_letters import list_letters

    with connect_sink(settings.sink.dsn) as connection:
        found, total = list_letters(connection, collection, closed=closed, limit=limit)
    if json_:
        plain = [{name: _plain(value) for name, value in row.items()} for row in found]
        click.echo(json.dumps({"total": total, "dead_letters": plain}, indent=2, ensure_ascii=False))
        return
    if not found:
        click.echo(f"no {'' if closed else 'open '}dead letters")
        return
    _print_list(found, closed)
    if total > len(found):
        click.echo(f"{total - len(found)} more: --limit {total} shows them")
    click.echo("next: upwell dead-letters show ID; mend what is wrong, then upwell dead-letters replay ID")


def _print_list(found: list[dict[str, Any]], closed: bool) -> None:
    columns = ("id", *LEFT[:4], "error", "age", "committed", *(("closed by",) if closed else ()))
    made = table(None, *columns, left=(*LEFT, "closed by"), wrap="error")
    for row in found:
        place = f"{row['topic']}/{row['partition']}@" if row["topic"] else f"generation {row['generation']} @"
        made.add_row(
            str(row["id"]),
            row["collection"],
            row["stage"],
            "?" if row["key"] is None else one_line(row["key"], 60),
            f"{place}{row['offset']}",
            f"{row['error_class']}: {one_line(row['error'], EXCERPT)}",
            duration(row["age_seconds"]),
            "?" if row["committed_at"] is None else _plain(row["committed_at"])[:19],
            *((row["closed_by"] or "",) if closed else ()),
        )
    screen = console()
    screen.width = max(screen.width, 150)
    screen.print(made)


@dead_letters.command()
@click.argument("id", type=int)
@click.option(
    "--bytes", "bytes_", is_flag=True, help="Also key and value as they came, in hex, and what they say."
)
@click.option("--text", "text", is_flag=True, help="Also the row and its document, where they can be read.")
@click.option("--json", "json_", is_flag=True, help="For a machine.")
@click.pass_context
def show(ctx: click.Context, id: int, bytes_: bool, text: bool, json_: bool) -> None:
    """All that is known of one; what it holds only where asked for."""
    settings = settings_from(ctx)
    from connectors.postgres.capture_state import connect_sink
    from connectors.postgres.dead_letters import one_letter

    with connect_sink(settings.sink.dsn) as connection:
        letter = one_letter(connection, id)
    answer = _answer(letter, bytes_=bytes_)
    if bytes_ or text:
        answer["contents"] = _contents(settings, letter)
    if json_:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    screen = console()
    for name, value in answer.items():
        if value is not None and name != "contents":
            screen.print(_printable(f"{name}: {value}"), soft_wrap=True)
    for name, value in (answer.get("contents") or {}).items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        screen.print(_printable(f"{name}: {shown}"), soft_wrap=True)


def _printable(text: str) -> str:
    """A text of the source as it is, but for what a terminal would obey."""
    return "".join(
        each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text
    )


def _answer(letter: StoredLetter, *, bytes_: bool) -> dict[str, Any]:
    held = {"key_bytes": letter.key_bytes, "value_bytes": letter.value_bytes}
    answer: dict[str, Any] = {
        "id": letter.id,
        "collection": letter.collection,
        "stage": letter.stage,
        "key": letter.key,
        "generation": letter.generation,
        "topic": letter.at and letter.at.topic,
        "partition": letter.at and letter.at.partition,
        "offset": letter.version.offset,
        "lineage": letter.version.lineage,
        "error_class": letter.error_class,
        "error": letter.error,
        **{name: _plain(getattr(letter, name)) for name in ("committed_at", "created_at", "closed_at")},
        "closed_by": letter.closed_by,
        "reason": letter.reason,
        "holds": {name: None if value is None else len(value) for name, value in held.items()},
    }
    if bytes_:
        answer |= {name: None if value is None else value.hex() for name, value in held.items()}
        answer["headers"] = [[name, None if value is None else value.hex()] for name, value in letter.headers]
    return answer


def _contents(settings: Settings, letter: StoredLetter) -> dict[str, Any]:
    """The decoded record, or why there is none: what the letter holds is shown all the same."""
    if letter.stage == "embed":
        return {
            "unreadable": f"the text is the stored row's: upwell explain {letter.collection} '{letter.key}'"
        }
    if not letter.is_open:
        return {"unreadable": "it was emptied when it was closed"}
    from streams.dead_letters import decoders

    try:
        return dict(asyncio.run(decoders(settings)).contents(letter))
    except UpwellError as error:
        return {"unreadable": " ".join(str(error).split())}


@dead_letters.command()
@click.argument("ids", metavar="[ID]...", nargs=-1, type=int)
@click.option("--collection", help="All open ones of this collection.")
@click.option("--error-class", help="Of those, only these, as `list` names them.")
@click.option("--all", "all_", is_flag=True, help="All open ones.")
@click.pass_context
def replay(
    ctx: click.Context, ids: tuple[int, ...], collection: str | None, error_class: str | None, all_: bool
) -> None:
    """Take them in again, in the version that they had.

    They are decoded as the spec is now, and something newer wins. Exit 1 if one stays open.
    """
    settings = settings_from(ctx)
    if [bool(ids), collection is not None, all_].count(True) != 1:
        raise SettingsError("say which dead letters: ids, or --collection C, or --all")
    if error_class is not None and ids:
        raise SettingsError("--error-class goes with --collection or --all")
    from connectors.postgres.capture_state import connect_sink
    from connectors.postgres.dead_letters import check_writable, named_letters, open_letters
    from streams.dead_letters import replay as replay_all

    with connect_sink(settings.sink.dsn) as connection:
        check_writable(connection)
        numbers = named_letters(connection, ids) if ids else open_letters(connection, collection, error_class)
    if not numbers:
        click.echo("no open dead letters")
        return
    if not asyncio.run(replay_all(settings, numbers, _tell)):
        ctx.exit(1)


def _tell(replayed: Replayed) -> None:
    if replayed.done:
        say(replayed.line)
    else:
        click.echo(f"upwell: {replayed.line}", err=True)


@dead_letters.command()
@click.argument("ids", metavar="ID...", nargs=-1, type=int, required=True)
@click.option("--reason", default="", help="Why; it is audited. Required.")
@click.pass_context
def waive(ctx: click.Context, ids: tuple[int, ...], reason: str) -> None:
    """Close and empty them, with a reason.

    The row stays as it was stored, or missing, until its next change.
    """
    settings = settings_from(ctx)
    if not reason.strip():
        raise SettingsError("say why with --reason TEXT: the audit keeps it")
    from connectors.postgres.capture_state import connect_sink
    from connectors.postgres.dead_letters import check_writable, named_letters, one_letter
    from connectors.postgres.dead_letters import waive as close

    with connect_sink(settings.sink.dsn) as connection:
        check_writable(connection)
        for number in named_letters(connection, ids):
            letter = one_letter(connection, number)
            if close(connection, number, reason.strip()):
                key = "whose key is not known" if letter.key is None else letter.key
                say(
                    f"dead letter {number} waived: the row of {letter.collection} {key} stays as it was stored, or "
                    "missing, until its next change at the source"
                )
            else:
                closed = one_letter(connection, number).closed_by
                say(f"dead letter {number} is closed already: {closed}")


def _plain(value: Any) -> Any:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
