"""Compares source and sink, key by key, sharing no code with the pipeline.

Both sides are read as `to_jsonb` in UTC prints them, with every digit. Texts are made here by plain formatting, and
compared with the chunks of the view joined without white space (how a document is cut is not the oracle's matter).
Vectors are recomputed from the chunks' texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np
import psycopg

Encode = Callable[[Sequence[str]], Any]
TextOf = Callable[[Mapping[str, Any]], str]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """A table, and the collection that should say the same: what its key is, and what is made of a row."""

    collection: str
    table: str
    text: TextOf
    metadata: Sequence[str]
    key: Sequence[str] = ("id",)


@dataclass
class Difference:
    """What is wrong in the sink; all empty when it says what the source says."""

    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    wrong_text: list[str] = field(default_factory=list)
    wrong_metadata: list[str] = field(default_factory=list)
    wrong_vector: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any((self.missing, self.extra, self.wrong_text, self.wrong_metadata, self.wrong_vector))


def content_text(row: Row) -> str:
    return f"{row['title'] or ''} {row['body'] or ''} {', '.join(row['tags'] or [])}"


def customer_text(row: Row) -> str:
    interests = ", ".join(row["interests"] or [])
    return f"{row['full_name'] or ''} ({row['segment'] or ''}). Interests: {interests}. {row['notes'] or ''}"


COMPARED: Mapping[str, Compared] = {
    "content": Compared(
        "content", "shop.content", content_text, ("locale", "published", "price", "updated_at", "tags")
    ),
    "customers": Compared(
        "customers", "shop.customers", customer_text, ("segment", "marketing_consent", "updated_at")
    ),
}


def squeezed(text: str) -> str:
    """Without white space."""
    return "".join(text.split())


def _rows(dsn: str, query: str) -> list[dict[str, Any]]:
    """Rows of one jsonb column, and of a second one beside it as `vector`."""
    with psycopg.connect(dsn, options="-c TimeZone=UTC") as connection:
        found = connection.execute(query).fetchall()
    return [
        {**json.loads(row[0], parse_float=Decimal), **({"vector": row[1]} if len(row) > 1 else {})}
        for row in found
    ]


def compare(
    source_dsn: str, sink_dsn: str, collection: str, encode: Encode | None = None, text: TextOf | None = None
) -> Difference:
    """One of the sample's two collections. `text`: what another template than its first makes of a row."""
    compared = COMPARED[collection]
    return compare_table(
        source_dsn, sink_dsn, compared if text is None else replace(compared, text=text), encode
    )


def compare_table(
    source_dsn: str, sink_dsn: str, compared: Compared, encode: Encode | None = None
) -> Difference:
    """Read both sides and compare; with `encode`, every stored vector is recomputed too (cosine >= 0.9999)."""
    source = {
        _key(compared, row): row
        for row in _rows(source_dsn, f"SELECT to_jsonb(t)::text FROM {compared.table} t")
    }
    chunks: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(
        sink_dsn,
        "SELECT (to_jsonb(v) - 'embedding')::text, embedding::text "
        f"FROM upwell.{compared.collection} v ORDER BY chunk_no",
    ):
        chunks.setdefault(_key(compared, row), []).append(row)
    found = Difference()
    found.missing = [
        key for key in sorted(source.keys() - chunks.keys()) if squeezed(compared.text(source[key]))
    ]
    found.extra = sorted(chunks.keys() - source.keys())
    for key in sorted(source.keys() & chunks.keys()):
        _compare_row(found, key, source[key], chunks[key], compared)
    if encode is not None:
        _compare_vectors(found, compared, [row for rows in chunks.values() for row in rows], encode)
    return found


def _key(compared: Compared, row: Row) -> str:
    return json.dumps([row[column] for column in compared.key])


def _compare_row(found: Difference, key: str, source: Row, chunks: Sequence[Row], compared: Compared) -> None:
    if [row["chunk_no"] for row in chunks] != list(range(len(chunks))):
        found.wrong_text.append(f"{key}: chunk numbers")
    elif squeezed("".join(row["chunk_text"] for row in chunks)) != squeezed(compared.text(source)):
        found.wrong_text.append(key)
    wrong = {column for row in chunks for column in compared.metadata if row[column] != source[column]}
    if wrong:
        found.wrong_metadata.append(f"{key}: {', '.join(sorted(wrong))}")


def _compare_vectors(found: Difference, compared: Compared, rows: Sequence[Row], encode: Encode) -> None:
    texts = sorted({row["chunk_text"] for row in rows})
    if not texts:
        return
    expected = dict(zip(texts, np.asarray(encode(texts), dtype=np.float64), strict=True))
    for row in rows:
        stored = np.fromstring(row["vector"].strip("[]"), sep=",")
        wanted = expected[row["chunk_text"]]
        cosine = float(stored @ wanted / (np.linalg.norm(stored) * np.linalg.norm(wanted)))
        if cosine < 0.9999:
            found.wrong_vector.append(f"{_key(compared, row)}/{row['chunk_no']}: cosine {cosine:.6f}")
