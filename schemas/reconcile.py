"""What source and sink say of the same key when they are compared: the vocabulary of `upwell reconcile`."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from schemas.change import JsonValue, Version

#: Keys fall into so many ranges of their MD5, which is the same in both databases whatever the key's type.
RANGES = 4096


class Kind(enum.StrEnum):
    """What can be wrong with a key. The last three are of the sink alone."""

    MISSING = "missing"
    EXTRA = "extra"
    STALE = "stale"
    MISSING_VECTOR = "missing_vector"
    EXTRA_VECTOR = "extra_vector"
    WRONG_VECTOR = "wrong_vector"


class Checksum(NamedTuple):
    """A range of keys: how many rows, and the XOR of 64 bits of each row's MD5."""

    rows: int
    bits: int


class Keyed(NamedTuple):
    """One row while ranges are narrowed down. `place`: MD5 of the key's text, by which both sides are ordered; `key`:
    canonical; `digest`: MD5 of the row's text.
    """

    place: str
    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A key in the sink. `version` None: no record at all; `digest` None: no record, or a marker.

    `transaction_id` wrote the version, if it is known. `in_doubt`: the key is to be looked for at the source (H9).
    """

    version: Version | None = None
    deleted: bool = False
    digest: str | None = None
    transaction_id: int | None = None
    in_doubt: bool = False

    def is_still(self, before: Stored) -> bool:
        """Whether nothing was taken in of the key since `before`."""
        return (self.version, self.deleted) == (before.version, before.deleted)


@dataclass(frozen=True, slots=True)
class Seen:
    """A key at the source. `visible`: the transaction that wrote the sink's version is visible to the same snapshot."""

    digest: str | None = None
    visible: bool = True


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that is wrong, as it was in the sink when that was certain. `notes`: what is known to be open of it."""

    kind: Kind
    key: str
    stored: Stored = Stored()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A live record with its chunks in the live generation, of one snapshot, in which none of its text was pending."""

    key: str
    version: Version
    row: Mapping[str, JsonValue]
    texts: Sequence[str] = ()
    vectors: Sequence[str] = ()
