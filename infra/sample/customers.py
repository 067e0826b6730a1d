"""The 1,000 customers, with notes as people in a shop write them."""

from __future__ import annotations

import random
from typing import Any, Final

from infra.sample.rows import CustomerRow, read_toml, some_time

COUNT: Final = 1000


def customers(seed: int = 7) -> list[CustomerRow]:
    """All customer rows, in key order; the same seed gives the same rows."""
    chance = random.Random(f"customers/{seed}")
    words = read_toml("customers.toml")
    names = [(first, last) for first in words["first_names"] for last in words["last_names"]]
    return [
        _row(key, first, last, words, chance)
        for key, (first, last) in enumerate(chance.sample(names, COUNT), start=1)
    ]


def _row(key: int, first: str, last: str, words: dict[str, Any], chance: random.Random) -> CustomerRow:
    """One customer, interested in one to three departments."""
    interests = tuple(chance.sample(sorted(words["topics"]), chance.choice((1, 2, 2, 3))))
    return CustomerRow(
        id=key,
        full_name=f"{first} {last}",
        email=f"{first}.{last}@example.org".lower(),
        segment=chance.choice(words["segments"]),
        interests=interests,
        notes=_notes(interests, words, chance),
        marketing_consent=chance.random() < 0.6,
        updated_at=some_time(chance),
    )


def _notes(interests: tuple[str, ...], words: dict[str, Any], chance: random.Random) -> str:
    """Three to five sentences: what was asked for and liked, perhaps a complaint, and how to deal with them."""
    topics, closing = words["topics"], words["closing"]
    lines = [chance.choice(topics[interests[0]]["asked"]), chance.choice(topics[interests[-1]]["likes"])]
    if chance.random() < 0.45:
        lines.append(chance.choice(topics[chance.choice(interests)]["complaints"]))
    if chance.random() < 0.5:
        lines.append(chance.choice(closing["household"]))
    lines.append(chance.choice(closing["contact"]))
    return " ".join(lines)
