"""Three searches whose top three change visibly when one row changes at the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal

from infra.sample.content import content
from infra.sample.rows import ContentRow, read_toml

SearchKind = Literal["edit", "insert", "delete"]

_SET_BODY: Final = "UPDATE shop.content SET body = %s, updated_at = now() WHERE id = %s"
_INSERT: Final = (
    "INSERT INTO shop.content (id, title, body, tags, locale, published, price, updated_at)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, now()) ON CONFLICT (id) DO NOTHING"
)
_DELETE: Final = "DELETE FROM shop.content WHERE id = %s"


@dataclass(frozen=True, slots=True)
class DemoSearch:
    """Search `query` in content, execute `sql` at the source, search again; `undo_sql` restores the row."""

    query: str
    kind: SearchKind
    sql: str
    parameters: Sequence[Any]
    description: str
    key: int
    undo_sql: str
    undo_parameters: Sequence[Any]


def _searches() -> tuple[DemoSearch, ...]:
    """The searches of `searches.toml`, with the keys of their pieces."""
    by_title = {row.title: row for row in content()}
    makers = {"edit": _edit, "insert": _insert, "delete": _delete}
    return tuple(
        makers[entry["kind"]](entry, by_title.get(entry["title"]))
        for entry in read_toml("searches.toml")["search"]
    )


def _edit(entry: dict[str, Any], row: ContentRow | None) -> DemoSearch:
    """An existing piece gets another body."""
    assert row is not None, entry["title"]
    return DemoSearch(
        entry["query"], "edit", _SET_BODY, (entry["body"], row.id), entry["description"], row.id,
        _SET_BODY, (row.body, row.id),
    )  # fmt: skip


def _insert(entry: dict[str, Any], _row: ContentRow | None) -> DemoSearch:
    """A new piece appears."""
    key, price = int(entry["id"]), Decimal(entry["price"])
    values = (key, entry["title"], entry["body"], entry["tags"], "en-GB", True, price)
    return DemoSearch(entry["query"], "insert", _INSERT, values, entry["description"], key, _DELETE, (key,))


def _delete(entry: dict[str, Any], row: ContentRow | None) -> DemoSearch:
    """The best hit disappears."""
    assert row is not None, entry["title"]
    values = (row.id, row.title, row.body, list(row.tags), row.locale, row.published, row.price)
    return DemoSearch(
        entry["query"], "delete", _DELETE, (row.id,), entry["description"], row.id, _INSERT, values
    )


SEARCHES: Final = _searches()
