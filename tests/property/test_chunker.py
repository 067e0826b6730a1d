"""Whatever the document: nothing is lost, and the model would truncate nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from connectors.encoder.chunker import TokenChunker
from tests.fixtures.model import tokenizer_json
from tests.unit.test_chunker import LIMIT

#: The tokenizer as the model uses it: with its special tokens, without truncation.
TOKENIZER = Tokenizer.from_file(str(tokenizer_json()))
TOKENIZER.no_truncation()
TOKENIZER.no_padding()
CHUNKERS = {
    (most, overlap): TokenChunker(TOKENIZER, limit=LIMIT, max_tokens=most, overlap_tokens=overlap)
    for most, overlap in [(8, 0), (20, 0), (126, 0), (254, 0), (20, 6), (126, 30)]
}

characters = st.characters(exclude_categories=["Cs"])
pieces = st.one_of(
    st.text(characters, max_size=30),
    st.text("abcdefghij .,\n", max_size=60),
    st.text("漢字仮名、。한국어ไทย", max_size=80),
    st.text("👍🏽👩‍👩‍👧🇩🇪e\u0301\u200b", max_size=40),
    st.text("\x00\x01\x1c\x1f\x7f\x85\u2028\ufeff", max_size=10),
    st.integers(20, 400).map(lambda size: "x" * size),
    st.integers(20, 200).map(lambda size: "q7Zé" * size),
)
documents = st.lists(pieces, max_size=25).flatmap(
    lambda parts: st.sampled_from(["", " ", "\n\n"]).map(lambda separator: separator.join(parts))
)


def bare(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize(("most", "overlap"), sorted(CHUNKERS))
@settings(max_examples=60, deadline=None)
@given(document=documents)
def test_no_chunk_is_truncated(most: int, overlap: int, document: str) -> None:
    for chunk in CHUNKERS[most, overlap].chunks(document):
        assert chunk == chunk.strip() != ""
        assert len(TOKENIZER.encode(chunk)) <= most + 2


@pytest.mark.parametrize("most", [8, 20, 126, 254])
@settings(max_examples=60, deadline=None)
@given(document=documents)
def test_nothing_is_lost(most: int, document: str) -> None:
    assert bare("".join(CHUNKERS[most, 0].chunks(document))) == bare(document)


@pytest.mark.parametrize(("most", "overlap"), [(20, 6), (126, 30)])
@settings(max_examples=60, deadline=None)
@given(document=documents)
def test_overlapping_chunks_end_where_others_would(most: int, overlap: int, document: str) -> None:
    """Every chunk lies in the document, behind the one before, and the last reaches the end."""
    chunks = CHUNKERS[most, overlap].chunks(document)
    at = 0
    for chunk in chunks:
        at = document.find(chunk, max(0, at))
        assert at >= 0
    assert (document.strip().endswith(chunks[-1])) if chunks else not document.strip()


@settings(max_examples=60, deadline=None)
@given(document=documents)
def test_one_document_one_result(document: str) -> None:
    first, again = (CHUNKERS[20, 0].chunks(document) for _ in range(2))
    assert first == again
