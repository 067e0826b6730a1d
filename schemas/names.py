"""Identifiers and keys as they are written everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

from schemas.errors import SettingsError

IDENTIFIER: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")

#: Columns of every view `upwell.C` that are ours (DESIGN 8): no key or metadata column may have their names.
VIEW_COLUMNS: Final = (
    "chunk_no",
    "chunk_text",
    "embedding",
    "model",
    "source_committed_at",
    "embedded_at",
    "is_stale",
)

#: Arguments and results of `upwell.search_C`, and what it uses within: a column of the name would be taken for it.
SEARCH_NAMES: Final = ("for_model", "query", "k", "ef_search", "score", "distance")
RESERVED_COLUMNS: Final = frozenset({*VIEW_COLUMNS, *SEARCH_NAMES})

#: Names of relations in schema `upwell`: no collection may have them.
RESERVED_COLLECTIONS: Final = frozenset(
    {
        "audit",
        "canary",
        "collection",
        "counter",
        "dead_letter",
        "delay",
        "freshness",
        "freshness_history",
        "generation",
        "lineage",
        "migration",
        "pending",
        "position",
        "repair",
        "report",
        "signal",
        "topic",
        "worker",
    }
)


def check_identifier(name: str, what: str) -> str:
    """Return `name`, or raise SettingsError: only `[a-z_][a-z0-9_]{0,62}` ever reaches SQL or Debezium."""
    if not IDENTIFIER.fullmatch(name):
        raise SettingsError(
            f"{what} {name!r} is not an identifier: use lower-case letters, digits and _, at most 63"
        )
    return name


def canonical_key(values: Sequence[object]) -> str:
    """The key as `pending`, the audit and the command line write it: a JSON array in key column order."""
    return json.dumps(list(values), ensure_ascii=False, separators=(",", ":"))
