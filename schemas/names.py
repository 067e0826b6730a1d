"""Identifiers and keys as they are written everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from schemas.errors import SettingsError

IDENTIFIER: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")

_CANONICAL: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

#: Columns of every view `upwell.C` that are ours (DESIGN 8): no key or metadata column may have their names.
VIEW_COLUMNS: Final = (
    "chunk_no",
    "chunk_text",
    "embedding",
    "model",
    "source_committed_at",
    "embedded_at",
    "is_stale",
    "stale_since",
)

#: Arguments and results of `upwell.search_C`, and what it uses within: a column of the name would be taken for it.
SEARCH_NAMES: Final = ("for_model", "query", "k", "ef_search", "score", "distance")
RESERVED_COLUMNS: Final = frozenset({*VIEW_COLUMNS, *SEARCH_NAMES})

#: Names of relations in schema `upwell`: no collection may have them.
RESERVED_COLLECTIONS: Final = frozenset(
    {
        "audit",
        "blocked",
        "canary",
        "canary_reference",
        "canary_seen",
        "collection",
        "counter",
        "dead_letter",
        "delay",
        "evaluation",
        "freshness",
        "freshness_history",
        "gap",
        "generation",
        "lineage",
        "migration",
        "monitor",
        "pending",
        "position",
        "repair",
        "report",
        "signal",
        "slow_change",
        "topic",
        "watermark",
        "worker",
    }
)


@dataclass(frozen=True, slots=True)
class ModelName:
    """`SCHEME:PLACE`, with `int8:` before it for the int8 variant, whose vectors are others: another model."""

    scheme: str
    place: str
    is_int8: bool

    @classmethod
    def parse(cls, name: str) -> Self:
        """Raises SettingsError."""
        rest = name.removeprefix("int8:")
        scheme, _, place = rest.partition(":")
        if scheme not in {"path", "package", "hub"} or not place:
            raise SettingsError(
                f"model {name!r}: write path:DIR, package:MODULE or hub:NAME, or int8: before one of these"
            )
        return cls(scheme, place, rest != name)


def check_identifier(name: str, what: str) -> str:
    """Return `name`, or raise SettingsError: only `[a-z_][a-z0-9_]{0,62}` ever reaches SQL or Debezium."""
    if not IDENTIFIER.fullmatch(name):
        raise SettingsError(
            f"{what} {name!r} is not an identifier: use lower-case letters, digits and _, at most 63"
        )
    return name


def canonical_key(values: Sequence[object]) -> str:
    """The key as `pending`, the audit and the command line write it: a JSON array in key column order."""
    return _CANONICAL.encode(list(values))


def key_values(columns: Sequence[str], words: Sequence[str]) -> list[object]:
    """The key's values in the order of `columns`, as a person writes them on the command line.

    A value for each column in order, all by name (`a=1,b=x`), or one JSON array; only the array's values have types,
    the others are text. Raises SettingsError, which says how to write it, if it is none of these.
    """
    if len(words) == 1 and words[0].startswith("["):
        found = _json_array(words[0])
        if found is not None and len(found) == len(columns):
            return found
    named = list(_named_values(columns, words))
    if sorted(name for name, _ in named) == sorted(columns):
        return [dict(named)[name] for name in columns]
    if len(words) == len(columns):
        return list(words)
    raise SettingsError(
        f"a key has the columns {', '.join(columns)}: give a value of each in order, "
        f"{','.join(f'{name}=...' for name in columns)}, or a JSON array"
    )


def _json_array(text: str) -> list[object] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _named_values(columns: Sequence[str], words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`a=1,b=x` or `a=1 b=x`; a value may hold commas and equals signs, as long as no name of a column is between."""
    name = "|".join(map(re.escape, columns))
    for word in words:
        starts = [(match[1], match.start(), match.end()) for match in re.finditer(rf"(?:^|,)({name})=", word)]
        if not starts or starts[0][1] != 0:
            return
        ends = [start for _, start, _ in starts[1:]] + [len(word)]
        yield from ((column, word[begin:end]) for (column, _, begin), end in zip(starts, ends, strict=True))
