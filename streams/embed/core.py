"""Which chunks must be encoded: the pure part of embedding. No text is encoded twice (DESIGN 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from schemas.sink import ChunkVector, Claim, EmbedWrite


def chunk_hash(text: str) -> bytes:
    """Identity of a chunk within a generation: SHA-256 of its UTF-8 text."""
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True, slots=True)
class Cut:
    """A claimed document, cut."""

    claim: Claim
    texts: tuple[str, ...]
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ChunkCounts:
    """Where the vectors of a batch came from: the model, the same document, or another one."""

    encoded: int
    kept: int
    copied: int


def cut(claim: Claim, texts: Sequence[str]) -> Cut:
    """A document's chunks with their hashes."""
    return Cut(claim, tuple(texts), tuple(chunk_hash(text) for text in texts))


def to_encode(cuts: Sequence[Cut], known: Collection[bytes]) -> dict[bytes, str]:
    """Texts without a vector in the generation, each once, in order of first appearance."""
    missing: dict[bytes, str] = {}
    for one in cuts:
        for digest, text in zip(one.hashes, one.texts, strict=True):
            if digest not in known:
                missing.setdefault(digest, text)
    return missing


def embed_write(
    one: Cut, vectors: Mapping[bytes, Sequence[float]], copy_from: int | None = None
) -> EmbedWrite:
    """What is written for a document: encoded vectors, and None for those that the sink holds."""
    chunks = [
        ChunkVector(number, text, digest, vectors.get(digest))
        for number, (digest, text) in enumerate(zip(one.hashes, one.texts, strict=True))
    ]
    return EmbedWrite(one.claim, chunks, copy_from)


def counts(
    cuts: Sequence[Cut], encoded: Collection[bytes], own: Mapping[str, frozenset[bytes]]
) -> ChunkCounts:
    """How many chunks were encoded, kept from the same document, or copied from elsewhere."""
    total = sum(len(one.hashes) for one in cuts)
    kept = sum(
        1
        for one in cuts
        for digest in one.hashes
        if digest in own.get(one.claim.key, frozenset()) and digest not in encoded
    )
    return ChunkCounts(encoded=len(encoded), kept=kept, copied=total - kept - len(encoded))
