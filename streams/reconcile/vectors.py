"""Which vectors are wrong: recomputed from the stored row, as the embedder makes them. Pure but for the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np

from schemas.errors import TemplateError
from schemas.reconcile import Document
from schemas.template import Template
from streams.embed.core import chunk_hash
from streams.ports import Chunker, Encoder

#: A vector of the same text by the same model, on any machine and runtime, is at least this near.
LEAST_COSINE: Final = 0.9999
BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class WrongVectors:
    """A document whose chunks are others, or have other vectors. `hashes`: of the chunks that are wrong."""

    document: Document
    hashes: Sequence[bytes]


def needs_vector(document: Document, template: Template) -> bool:
    """Whether its text is one to be embedded. One that cannot be rendered is the embedder's to say."""
    try:
        return bool(template.render(document.row))
    except TemplateError:
        return False


def wrong_vectors(
    documents: Iterable[Document], template: Template, chunker: Chunker, encoder: Encoder
) -> Iterator[WrongVectors]:
    """Those of these documents; memory for BATCH of them."""
    remaining = iter(documents)
    while batch := list(islice(remaining, BATCH)):
        right: list[Document] = []
        for document in batch:
            try:
                texts = list(chunker.chunks(template.render(document.row)))
            except TemplateError:
                continue
            if texts == list(document.texts):
                right.append(document)
            else:
                yield WrongVectors(document, [chunk_hash(text) for text in {*texts, *document.texts}])
        yield from _recomputed(right, encoder)


def _recomputed(documents: Sequence[Document], encoder: Encoder) -> Iterator[WrongVectors]:
    texts = sorted({text for document in documents for text in document.texts}, key=len)
    if not texts:
        return
    expected = dict(zip(texts, np.asarray(encoder.encode(texts), dtype=np.float64), strict=True))
    for document in documents:
        wrong = [
            chunk_hash(text)
            for text, stored in zip(document.texts, document.vectors, strict=True)
            if _cosine(np.array(json.loads(stored), dtype=np.float64), expected[text]) < LEAST_COSINE
        ]
        if wrong:
            yield WrongVectors(document, wrong)


def _cosine(stored: np.ndarray, expected: np.ndarray) -> float:
    if stored.shape != expected.shape:
        return 0.0
    length = float(np.linalg.norm(stored) * np.linalg.norm(expected))
    return float(stored @ expected) / length if length else 0.0
