"""No text is encoded twice, and the counts of where vectors came from add up."""

from __future__ import annotations

from datetime import UTC, datetime

from schemas.change import Version
from schemas.sink import Claim, Lane
from streams.embed.core import ChunkCounts, chunk_hash, counts, cut, embed_write, to_encode

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def claim(key: str = "[1]") -> Claim:
    return Claim("content", 1, key, Version(1, 1), "t", Lane.LIVE, {}, 0, None, NOW, NOW, 1)


def test_the_same_chunk_is_encoded_once_in_a_batch() -> None:
    cuts = [cut(claim("[1]"), ["tea", "milk", "tea"]), cut(claim("[2]"), ["milk"])]
    assert list(to_encode(cuts, ()).values()) == ["tea", "milk"]


def test_what_the_sink_has_is_not_encoded() -> None:
    one = cut(claim(), ["tea", "milk"])
    assert list(to_encode([one], {chunk_hash("tea")}).values()) == ["milk"]


def test_chunks_are_numbered_and_only_encoded_ones_carry_a_vector() -> None:
    one = cut(claim(), ["tea", "milk", "tea"])
    write = embed_write(one, {chunk_hash("milk"): (1.0, 0.0)})
    assert [(chunk.number, chunk.text, chunk.vector) for chunk in write.chunks] == [
        (0, "tea", None),
        (1, "milk", (1.0, 0.0)),
        (2, "tea", None),
    ]
    assert [chunk.hash for chunk in write.chunks] == list(one.hashes)


def test_an_empty_document_has_no_chunk() -> None:
    assert embed_write(cut(claim(), []), {}).chunks == []
    assert to_encode([cut(claim(), [])], ()) == {}


def test_counts_add_up() -> None:
    cuts = [cut(claim("[1]"), ["tea", "milk", "sugar"]), cut(claim("[2]"), ["sugar", "cake"])]
    own = {"[1]": frozenset({chunk_hash("tea")})}
    found = counts(cuts, {chunk_hash("milk"), chunk_hash("sugar")}, own)
    assert found == ChunkCounts(encoded=2, kept=1, copied=2)


def test_a_chunk_that_another_embedder_stored_meanwhile_counts_once() -> None:
    """It was encoded here, and is the document's own by the time that is asked."""
    digest = chunk_hash("tea")
    found = counts([cut(claim(), ["tea"])], {digest}, {"[1]": frozenset({digest})})
    assert found == ChunkCounts(encoded=1, kept=0, copied=0)
