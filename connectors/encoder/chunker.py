"""Cuts documents into chunks that the model reads whole, and that stay what they are when another part changes.

Tokens are counted by the model's own tokenizer with truncation and padding switched off (a `tokenizer.json` may
carry both). Where to cut is `boundaries.py`; runs without white space that are too long for a word are cut
by semantic-text-splitter, which keeps graphemes whole.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, Protocol, Self

from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer

from connectors.encoder.boundaries import Word, cuts
from schemas.errors import SettingsError

#: A longer run without white space is cut into pieces of at most this many characters.
LONGEST_WORD: Final = 32
_RUN = re.compile(r"\S+")
#: Scripts written without white space whose characters each make a word (Han, kana, their punctuation).
_IDEOGRAPH = (
    "[\u2e80-\u30ff\u31c0-\ua4cf\uf900-\ufaff\uff01-\uff60\U00020000-\U0003ffff]"
    "[\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef]*"
)
_PIECE = re.compile(f"{_IDEOGRAPH}|(?:(?!{_IDEOGRAPH}).)+", re.DOTALL)


class HasTokenizer(Protocol):
    """What the chunker needs of an encoder."""

    @property
    def name(self) -> str: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def tokenizer_json(self) -> str: ...


class TokenChunker:
    """Chunks of at most `max_tokens` text tokens; 0 means `limit`, the model's own.

    A document that fits is one chunk, a blank one none. Chunks have no white space at their ends. With overlap each
    chunk but the first begins with up to `overlap_tokens` tokens of whole words from the end of the one before.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        limit: int,
        max_tokens: int = 0,
        overlap_tokens: int = 0,
        model: str = "the model",
    ) -> None:
        if max_tokens > limit:
            raise SettingsError(
                f"chunk.max_tokens is {max_tokens}, but {model} reads at most {limit} text tokens"
            )
        self.max_tokens = max_tokens or limit
        if not 0 <= overlap_tokens <= self.max_tokens // 2:
            raise SettingsError(
                f"chunk.overlap_tokens is {overlap_tokens}: at most half of max_tokens, {self.max_tokens}, is possible"
            )
        self.overlap_tokens = overlap_tokens
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._room = self.max_tokens - overlap_tokens
        self._pieces = TextSplitter(LONGEST_WORD, trim=False)
        self._by_tokens = TextSplitter.from_huggingface_tokenizer(self._tokenizer, self._room, trim=False)

    @classmethod
    def from_file(
        cls, tokenizer_json: Path, *, limit: int, max_tokens: int = 0, overlap_tokens: int = 0
    ) -> Self:
        """With the tokenizer of a `tokenizer.json`; needs no model and no torch."""
        tokenizer = Tokenizer.from_file(str(tokenizer_json))
        return cls(tokenizer, limit=limit, max_tokens=max_tokens, overlap_tokens=overlap_tokens)

    @classmethod
    def of(cls, encoder: HasTokenizer, *, max_tokens: int = 0, overlap_tokens: int = 0) -> Self:
        """With an encoder's own tokenizer and limit."""
        return cls(
            Tokenizer.from_str(encoder.tokenizer_json),
            limit=encoder.max_tokens,
            max_tokens=max_tokens,
            overlap_tokens=overlap_tokens,
            model=f"model {encoder.name}",
        )

    def count(self, text: str) -> int:
        """Text tokens as the model counts them, special tokens not among them."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def chunks(self, document: str) -> Sequence[str]:
        """Non-empty chunks in order, each of at most `max_tokens` tokens; none for a blank document."""
        document = document.strip()
        if not document:
            return []
        encoding = self._tokenizer.encode(document, add_special_tokens=False)
        if len(encoding) <= self.max_tokens:
            return [document]
        starts = list(self._starts(document))
        words = _words(document, starts, [end for _, end in encoding.offsets])
        edges = [0, *(starts[cut] for cut in cuts(words, self._room)), len(document)]
        spans = [
            span for first, last in pairwise(edges) for span in self._fitting(document, starts, first, last)
        ]
        if self.overlap_tokens:
            spans = list(self._overlapping(document, starts, spans))
        return [text for first, last in spans if (text := document[first:last].strip())]

    def _starts(self, document: str) -> Iterator[int]:
        """Where each word begins: runs between white space, ideographs, pieces of long runs."""
        for run in _RUN.finditer(document):
            for piece in _PIECE.finditer(run[0]):
                offset = run.start() + piece.start()
                if len(piece[0]) <= LONGEST_WORD:
                    yield offset
                else:
                    yield from (offset + at for at, _ in self._pieces.chunk_indices(piece[0]))

    def _fitting(
        self, document: str, starts: Sequence[int], first: int, last: int
    ) -> Iterator[tuple[int, int]]:
        """The span itself, or parts of it: a word cut off from its neighbours may count more tokens than with them."""
        if self.count(document[first:last].strip()) <= self._room:
            yield first, last
            return
        inner = starts[bisect_right(starts, first) : bisect_right(starts, last - 1)]
        if inner:
            middle = inner[len(inner) // 2]
            yield from self._fitting(document, starts, first, middle)
            yield from self._fitting(document, starts, middle, last)
        else:
            text = document[first:last]
            edges = [first + at for at, _ in self._by_tokens.chunk_indices(text)]
            yield from zip([first, *edges[1:]], [*edges[1:], last], strict=True)

    def _overlapping(
        self, document: str, starts: Sequence[int], spans: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """Spans with words before them, as many as the overlap allows, none beginning before the one before it."""
        least = 0
        for first, last in spans:
            begin = first
            for start in reversed(starts[bisect_left(starts, least) : bisect_left(starts, first)]):
                if self.count(document[start:first]) > self.overlap_tokens:
                    break
                if self.count(document[start:last].strip()) <= self.max_tokens:
                    begin = start
            yield begin, last
            least = begin


def _words(document: str, starts: Sequence[int], token_ends: Sequence[int]) -> list[Word]:
    """Words with their tokens; a token belongs to the word in which it ends."""
    tokens = [0] * len(starts)
    for end in token_ends:
        tokens[max(0, bisect_right(starts, max(0, end - 1)) - 1)] += 1
    words = []
    for start, end, count in zip(starts, [*starts[1:], len(document)], tokens, strict=True):
        text = document[start:end]
        bare = text.rstrip()
        words.append(Word(bare, text[len(bare) :], count))
    return words
