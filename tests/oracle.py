"""Compares source and sink, key by key, sharing no code with the pipeline.

Texts are made here by plain formatting, and compared with the chunks of the view joined without white space (how a
document is cut is not the oracle's matter). Vectors are recomputed from the chunks' texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg
import psycopg.rows

Encode = Callable[[Sequence[str]], Any]
TextOf = Callable[[Mapping[str, Any]], str]


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


def content_text(row: Mapping[str, Any]) -> str:
    return f"{row['title'] or ''} {row['body'] or ''} {', '.join(row['tags'] or [])}"


def customer_text(row: Mapping[str, Any]) -> str:
    interests = ", ".join(row["interests"] or [])
    return f"{row['full_name'] or ''} ({row['segment'] or ''}). Interests: {interests}. {row['notes'] or ''}"


TEXTS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str], tuple[str, ...]]] = {
    "content": ("shop.content", content_text, ("locale", "published", "price", "updated_at", "tags")),
    "customers": ("shop.customers", customer_text, ("segment", "marketing_consent", "updated_at")),
}


def squeezed(text: str) -> str:
    """Without white space."""
    return "".join(text.split())


def _rows(dsn: str, query: str) -> list[dict[str, Any]]:
    with psycopg.connect(dsn, row_factory=psycopg.rows.dict_row) as connection:
        return connection.execute(query).fetchall()


def compare(
    source_dsn: str, sink_dsn: str, collection: str, encode: Encode | None = None, text: TextOf | None = None
) -> Difference:
    """Read both sides and compare; with `encode`, every stored vector is recomputed too (cosine >= 0.9999).

    `text`: what another template than the collection's first makes of a row.
    """
    table, text_of, metadata = TEXTS[collection]
    text_of = text or text_of
    source = {row["id"]: row for row in _rows(source_dsn, f"SELECT * FROM {table}")}
    chunks: dict[int, list[dict[str, Any]]] = {}
    for row in _rows(
        sink_dsn, f"SELECT *, embedding::text AS vector FROM upwell.{collection} ORDER BY id, chunk_no"
    ):
        chunks.setdefault(row["id"], []).append(row)
    found = Difference()
    found.missing = [
        str(key) for key in sorted(source.keys() - chunks.keys()) if squeezed(text_of(source[key]))
    ]
    found.extra = [str(key) for key in sorted(chunks.keys() - source.keys())]
    for key in sorted(source.keys() & chunks.keys()):
        _compare_row(found, source[key], chunks[key], text_of(source[key]), metadata)
    if encode is not None:
        _compare_vectors(found, [row for rows in chunks.values() for row in rows], encode)
    return found


def _compare_row(
    found: Difference,
    source: Mapping[str, Any],
    chunks: Sequence[Mapping[str, Any]],
    text: str,
    metadata: Sequence[str],
) -> None:
    key = str(source["id"])
    if [row["chunk_no"] for row in chunks] != list(range(len(chunks))):
        found.wrong_text.append(f"{key}: chunk numbers")
    elif squeezed("".join(row["chunk_text"] for row in chunks)) != squeezed(text):
        found.wrong_text.append(key)
    if any(row[column] != source[column] for row in chunks for column in metadata):
        found.wrong_metadata.append(key)


def _compare_vectors(found: Difference, rows: Sequence[Mapping[str, Any]], encode: Encode) -> None:
    texts = sorted({row["chunk_text"] for row in rows})
    if not texts:
        return
    expected = dict(zip(texts, np.asarray(encode(texts), dtype=np.float64), strict=True))
    for row in rows:
        stored = np.fromstring(row["vector"].strip("[]"), sep=",")
        wanted = expected[row["chunk_text"]]
        cosine = float(stored @ wanted / (np.linalg.norm(stored) * np.linalg.norm(wanted)))
        if cosine < 0.9999:
            found.wrong_vector.append(f"{row['id']}/{row['chunk_no']}: cosine {cosine:.6f}")
