"""`upwell search`: nearest neighbours of a text, found as an application finds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from schemas.errors import SettingsError
from streams.cli.completion import collection_names
from streams.cli.context import settings_from
from streams.cli.table import console, duration, one_line, table
from streams.settings import Settings

if TYPE_CHECKING:
    from connectors.postgres.read import SearchHit

EXCERPT: Final = 200


@click.command()
@click.argument("collection", shell_complete=collection_names)
@click.argument("text")
@click.option("-k", "k", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many chunks.")
@click.option("--json", "json_", is_flag=True, help="For a machine.")
@click.pass_context
def search(ctx: click.Context, collection: str, text: str, k: int, json_: bool) -> None:
    """The chunks of COLLECTION nearest to TEXT: score, key, chunk number, staleness, text."""
    if not text.strip():
        raise click.BadParameter("is blank", param_hint="TEXT")
    model, hits = find(settings_from(ctx), collection, text, k)
    if json_:
        click.echo(json.dumps(as_json(model, collection, text, hits), indent=2, ensure_ascii=False))
    else:
        render(hits)


def find(settings: Settings, collection: str, text: str, k: int) -> tuple[str, list[SearchHit]]:
    """The live generation's model, and what it finds. What is cheap to find wrong is found before it is loaded."""
    if collection not in settings.collections:
        known = ", ".join(sorted(settings.collections)) or "none"
        raise SettingsError(f"no collection {collection!r} in the spec: it has {known}")
    from connectors.postgres.capture_state import connect_sink
    from connectors.postgres.read import live_model, search_rows
    from streams.models import encoder_of

    with connect_sink(settings.sink.dsn) as connection:
        name = live_model(connection, collection)
        vector = encoder_of(settings, name, _progress).encode([text])[0]
        return name, search_rows(connection, collection, name, vector, k)


def _progress(line: str) -> None:
    """Beside the answer, not in it."""
    click.echo(line, err=True)


def render(hits: Sequence[SearchHit]) -> None:
    """One row a hit; the text column takes what is left of the width."""
    screen = console()
    if not hits:
        screen.print("nothing found: the collection is empty")
        return
    columns = ("score", "key", "chunk", "state", "text")
    made = table(None, *columns, left=("key", "state", "text"), wrap="text")
    for hit in hits:
        excerpt = one_line(hit.chunk_text, EXCERPT)
        made.add_row(f"{hit.score:.3f}", one_line(hit.key, 40), str(hit.chunk_no), _state(hit), excerpt)
    screen.print(made)


def _state(hit: SearchHit) -> str:
    if not hit.is_stale:
        return "fresh"
    return "stale" if hit.stale_seconds is None else f"stale {duration(hit.stale_seconds)}"


def as_json(model: str, collection: str, text: str, hits: Sequence[SearchHit]) -> dict[str, Any]:
    """The hits for a machine, times in UTC."""
    return {
        "collection": collection,
        "model": model,
        "query": text,
        "hits": [{name: _plain(value) for name, value in asdict(hit).items()} for hit in hits],
    }


def _plain(value: Any) -> Any:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
