"""The 300 content pieces: 295 short pages from `pieces/*.md` and five long guides from `guides/*.md`.

A heading line is `## Title | price or - | tag, tag`. Keys do not depend on the seed; the closing sentence of a page,
its locale, whether it is published and when it was updated do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from itertools import zip_longest
from typing import Any, Final

from infra.sample.rows import ContentRow, data, read_toml, some_time

DEPARTMENTS: Final = (
    "outdoor", "kitchen", "home", "garden", "bicycle", "coffee", "hobby", "pets", "kids", "repair", "service",
)  # fmt: skip
GUIDES: Final = ("coffee", "garden", "bicycle", "walking", "kitchen")

#: Keys of the guides: spread over the table, as in a shop that has grown.
GUIDE_EVERY: Final = 60


@dataclass(frozen=True, slots=True)
class Piece:
    """A hand-written text before the seed has touched it."""

    title: str
    body: str
    tags: tuple[str, ...]
    price: Decimal | None
    department: str | None  # None: a long guide


def content(seed: int = 7) -> list[ContentRow]:
    """All content rows, in key order; the same seed gives the same rows."""
    chance = random.Random(f"content/{seed}")
    closings = read_toml("pieces/closings.toml")
    rows = [_row(key, piece, closings, chance) for key, piece in enumerate(pieces(), start=1)]
    shown = {search["title"] for search in read_toml("searches.toml")["search"]}
    return [replace(row, published=row.published or row.title in shown) for row in rows]


@cache
def pieces() -> tuple[Piece, ...]:
    """Every text in key order: the departments take turns, and every sixtieth piece is a guide."""
    departments = [list(_read_pieces(name)) for name in DEPARTMENTS]
    short = [piece for turn in zip_longest(*departments) for piece in turn if piece is not None]
    ordered: list[Piece] = []
    for start, name in enumerate(GUIDES):
        step = GUIDE_EVERY - 1
        ordered += [*short[start * step : (start + 1) * step], _read_guide(name)]
    return tuple(ordered)


def _read_pieces(department: str) -> Iterator[Piece]:
    """The pages of one department's file."""
    text = data().joinpath("pieces", f"{department}.md").read_text(encoding="utf-8")
    for block in text.removeprefix("## ").split("\n## "):
        heading, body = block.strip().split("\n", 1)
        title, price, tags = (part.strip() for part in heading.split("|"))
        names = (department, *(tag.strip() for tag in tags.split(",")))
        yield Piece(title, body.strip(), names, None if price == "-" else Decimal(price), department)


def _read_guide(name: str) -> Piece:
    """A long guide: the first line is `# Title | tags`, the rest is its body."""
    text = data().joinpath("guides", f"{name}.md").read_text(encoding="utf-8")
    heading, body = text.removeprefix("# ").split("\n", 1)
    title, tags = (part.strip() for part in heading.split("|"))
    return Piece(title, body.strip(), tuple(tag.strip() for tag in tags.split(",")), None, None)


def _row(key: int, piece: Piece, closings: dict[str, Any], chance: random.Random) -> ContentRow:
    """The piece as the seed finishes it. Only goods can be drafts, and few of them are."""
    endings = _endings(piece, closings)
    body = f"{piece.body} {chance.choice(endings)}" if endings else piece.body
    draft = piece.price is not None and chance.random() < 0.08
    locale = chance.choices(("en-GB", "en-IE"), weights=(9, 1))[0]
    return ContentRow(key, piece.title, body, piece.tags, locale, not draft, piece.price, some_time(chance))


def _endings(piece: Piece, closings: dict[str, Any]) -> list[str]:
    """The sentences that may end this piece; none for guides, policies and services."""
    if piece.department in (None, "service") or {"policy", "service", "course", "safety"} & set(piece.tags):
        return []
    if piece.price is not None:
        return list(closings["product"][piece.department])
    return list(closings["article"]["recipe" if "recipe" in piece.tags else "any"])
