"""An endless, reproducible stream of small edits, as a shop makes them all day."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal

from infra.sample.content import content
from infra.sample.customers import customers
from infra.sample.rows import ContentRow, CustomerRow, read_toml
from infra.sample.searches import SEARCHES

ChangeKind = Literal["insert", "update", "metadata", "delete"]

#: Rows that the stream inserts count up from here; it deletes no others.
FIRST_NEW_ID: Final = 100_000

_SET_BODY: Final = "UPDATE shop.content SET body = %s, updated_at = now() WHERE id = %s"
_SET_PRICE: Final = "UPDATE shop.content SET price = %s, updated_at = now() WHERE id = %s"
_SET_NOTES: Final = "UPDATE shop.customers SET notes = %s, updated_at = now() WHERE id = %s"
_SET_CONSENT: Final = "UPDATE shop.customers SET marketing_consent = %s, updated_at = now() WHERE id = %s"
_INSERT: Final = (
    "INSERT INTO shop.content (id, title, body, tags, locale, published, price, updated_at)"
    " VALUES (%s, %s, %s, %s, 'en-GB', true, %s, now()) ON CONFLICT (id) DO UPDATE SET"
    " title = excluded.title, body = excluded.body, tags = excluded.tags, price = excluded.price,"
    " published = true, updated_at = now()"
)
_DELETE: Final = "DELETE FROM shop.content WHERE id = %s"


@dataclass(frozen=True, slots=True)
class LiveChange:
    """One edit at the source: execute `sql` with `parameters`; `description` is for a person."""

    table: str
    key: int
    kind: ChangeKind
    sql: str
    parameters: Sequence[Any]
    description: str


def live_changes(seed: int) -> Iterator[LiveChange]:
    """Small edits without end over the rows of the default seed; the same seed gives the same edits."""
    return _Shop(random.Random(f"live/{seed}")).changes()


@dataclass
class _Shop:
    """What the stream believes the tables hold."""

    chance: random.Random
    words: dict[str, Any] = field(default_factory=lambda: read_toml("live.toml"))
    topics: dict[str, Any] = field(default_factory=lambda: read_toml("customers.toml")["topics"])
    content: list[ContentRow] = field(default_factory=content)
    customers: list[CustomerRow] = field(default_factory=customers)
    prices: dict[int, Decimal] = field(default_factory=dict)
    consent: dict[int, bool] = field(default_factory=dict)
    own: dict[int, str] = field(default_factory=dict)
    next_id: int = FIRST_NEW_ID

    def __post_init__(self) -> None:
        """The pieces of the demo searches keep their text: an edit here would undo what a search shows."""
        shown = {search.key for search in SEARCHES}
        self.editable = [row for row in self.content if row.id not in shown]
        self.priced = [row for row in self.editable if row.price is not None]

    def changes(self) -> Iterator[LiveChange]:
        """Mostly edits of text, some of metadata, now and then a new page or the end of one."""
        kinds: dict[Callable[[], LiveChange], int] = {
            self._edit_content: 30,
            self._edit_customer: 30,
            self._change_price: 15,
            self._change_consent: 10,
            self._insert: 9,
            self._delete: 6,
        }
        while True:
            yield self.chance.choices(list(kinds), weights=list(kinds.values()))[0]()

    def _edit_content(self) -> LiveChange:
        """A remark at the end of one paragraph; in a long guide all other paragraphs stay as they are."""
        row = self.chance.choice(self.editable)
        paragraphs = row.body.split("\n\n")
        texts = [n for n, text in enumerate(paragraphs) if not text.startswith("## ")]
        place = self.chance.choice(texts)
        remark = self.chance.choice(self.words["remarks"]["articles" if row.price is None else "goods"])
        paragraphs[place] += f" {remark}"
        where = f"paragraph {place + 1} of {len(paragraphs)}" if len(paragraphs) > 1 else "body"
        text = f"content {row.id}: {where} now ends “{remark}”"
        return LiveChange(
            "shop.content", row.id, "update", _SET_BODY, ("\n\n".join(paragraphs), row.id), text
        )

    def _edit_customer(self) -> LiveChange:
        """A new line in the notes, about any department."""
        row = self.chance.choice(self.customers)
        topic = self.chance.choice(sorted(self.topics))
        line = self.chance.choice(self.topics[topic]["asked"])
        text = f"customer {row.id}: notes now end “{line}”"
        notes = f"{row.notes} {line}"
        return LiveChange("shop.customers", row.id, "update", _SET_NOTES, (notes, row.id), text)

    def _change_price(self) -> LiveChange:
        """A price that ends in .00 or .50 moves by up to a fifth."""
        row = self.chance.choice(self.priced)
        old = self.prices.get(row.id, row.price) or Decimal(1)
        new = old
        while new == old:
            base = row.price or old
            new = (base * self.chance.randrange(80, 121) / 50).quantize(Decimal(1)) / 2
        self.prices[row.id] = new = new.quantize(Decimal("0.01"))
        text = f"content {row.id}: price {old} -> {new} (metadata only)"
        return LiveChange("shop.content", row.id, "metadata", _SET_PRICE, (new, row.id), text)

    def _change_consent(self) -> LiveChange:
        """Somebody allows or forbids marketing."""
        row = self.chance.choice(self.customers)
        new = not self.consent.get(row.id, row.marketing_consent)
        self.consent[row.id] = new
        text = f"customer {row.id}: marketing consent {'given' if new else 'withdrawn'} (metadata only)"
        return LiveChange("shop.customers", row.id, "metadata", _SET_CONSENT, (new, row.id), text)

    def _insert(self) -> LiveChange:
        """A new page under a key of its own; if all arrivals are there already, one of them goes instead."""
        missing = [page for page in self.words["arrivals"] if page["title"] not in self.own.values()]
        if not missing:
            return self._delete()
        arrival = self.chance.choice(missing)
        key, self.next_id = self.next_id, self.next_id + 1
        self.own[key] = arrival["title"]
        price = Decimal(arrival["price"]) if "price" in arrival else None
        values = (key, arrival["title"], arrival["body"], arrival["tags"], price)
        text = f"content {key}: new page “{arrival['title']}”"
        return LiveChange("shop.content", key, "insert", _INSERT, values, text)

    def _delete(self) -> LiveChange:
        """The end of a page that this stream made; if there is none left, a new one instead."""
        if not self.own:
            return self._insert()
        key = self.chance.choice(sorted(self.own))
        text = f"content {key}: “{self.own.pop(key)}” deleted"
        return LiveChange("shop.content", key, "delete", _DELETE, (key,), text)
