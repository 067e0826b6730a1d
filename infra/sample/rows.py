"""The rows of the sample shop: one frozen dataclass a table, field names are column names."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

#: Every `updated_at` lies in the 300 days after this instant, so that rows are the same on every machine.
EPOCH: Final = datetime(2025, 1, 1, 8, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ContentRow:
    """A row of `shop.content`."""

    id: int
    title: str
    body: str
    tags: tuple[str, ...]
    locale: str
    published: bool
    price: Decimal | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class CustomerRow:
    """A row of `shop.customers`."""

    id: int
    full_name: str
    email: str
    segment: str
    interests: tuple[str, ...]
    notes: str
    marketing_consent: bool
    updated_at: datetime


def data() -> Traversable:
    """The folder of the hand-written texts."""
    return files("infra.sample")


def read_toml(name: str) -> dict[str, Any]:
    """A data file of this package, parsed."""
    return tomllib.loads(data().joinpath(name).read_text(encoding="utf-8"))


def some_time(chance: random.Random) -> datetime:
    """An instant, to the minute, in the shop's year."""
    return EPOCH + timedelta(minutes=chance.randrange(300 * 24 * 60))
