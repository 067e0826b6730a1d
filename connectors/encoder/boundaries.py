"""Where a document is cut, so that a small edit moves few cuts.

A greedy splitter fills one chunk after the other: an edit shifts every cut behind it, and the whole rest of the
document is embedded again. Here the cuts come from three rules, each of which looks at one thing only:

1. **Segments.** Some line breaks are anchors: those before the longest paragraph within some chunks to either side.
   Replacing a word does not touch lengths in words, and a few more words seldom make another paragraph the longest.
   A long stretch without line breaks gets anchors by the hash of single words (sentence ends where there are any),
   wide apart.
2. **Grid.** A segment of N words is cut into k even parts. N and k do not change when a word is replaced.
3. **Snap.** Each cut moves to the best boundary within a window around its place on the grid: paragraph, line,
   sentence, clause, and then by a hash of the two words beside it. Windows do not overlap, so that replacing a word
   moves one cut at most: two chunks.

Lengths are counted in words because a replaced word may have another number of tokens. Tokens come in twice: how many
words a chunk holds is taken from the tokens per word of the whole document, rounded to a coarse scale; and a
part with too many tokens is halved. What is left to chance, in one replaced word of a thousand: a document at the edge
of that scale, the few words that carry an anchor by their hash, a cut that moves and fills a chunk too far.
Hashes are BLAKE2, never Python's `hash`: the same cuts on any machine.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile
from typing import Final

#: A chunk aims at this share of its tokens: the rest absorbs the snap and words with many tokens.
FILL: Final = 0.85
#: Tokens per word are rounded to a power of STEP times BASE; ordinary prose is 1.15 to 1.35, far from an edge.
DENSITY_BASE: Final = 1.25
DENSITY_STEP: Final = 1.22
#: A single word counts for so many tokens in the density, lest a long one shifts the whole document.
DENSITY_CAP: Final = 4
#: A cut moves by this share of a chunk to either side at most.
SNAP: Final = 0.15
#: No two anchors of line breaks, and none of words, are nearer than so many chunks; segments longer than
#: LONG_SEGMENT chunks get anchors of words.
LINE_RADIUS: Final = 2
WORD_RADIUS: Final = 3
LONG_SEGMENT: Final = 8
#: A segment may be longer than k chunks by this share of a chunk before it gets one more.
SLACK: Final = 0.15
#: Without a sentence end every so many words, anchors are taken from all words.
RARE_SENTENCES: Final = 60

ANY, CLAUSE, SENTENCE, LINE, PARAGRAPH = range(5)
_SENTENCE_END = re.compile(r"[.!?…。！？؟।][\"'”’»)\]」』]*$")
_CLAUSE_END = re.compile(r"[,;:、，；：]$")


@dataclass(frozen=True, slots=True)
class Word:
    """An atom of cutting: `document[start:end]` without the white space behind it, and its tokens."""

    text: str
    space: str
    tokens: int

    @property
    def level(self) -> int:
        """How good a place the boundary behind this word is."""
        if "\n" in self.space:
            return PARAGRAPH if self.space.count("\n") > 1 else LINE
        if _SENTENCE_END.search(self.text):
            return SENTENCE
        return CLAUSE if _CLAUSE_END.search(self.text) else ANY


def cuts(words: Sequence[Word], max_tokens: int) -> list[int]:
    """Numbers of the words that begin a chunk, the first one not among them."""
    return _Cutter(words, max_tokens).cuts()


class _Cutter:
    """One document. A boundary `i` lies before word `i`."""

    def __init__(self, words: Sequence[Word], max_tokens: int) -> None:
        self.words = words
        self.max_tokens = max_tokens
        self.size = len(words)
        self.before = list(accumulate((word.tokens for word in words), initial=0))
        self.levels = [ANY, *(word.level for word in words)]
        self.per_chunk = _words_per_chunk(words, max_tokens)

    def cuts(self) -> list[int]:
        if self.before[-1] <= self.max_tokens:
            return []
        found: list[int] = []
        for start, end in self._segments():
            edges = [start, *self._grid(start, end), end]
            for left, right in pairwise(edges):
                found.extend(self._halves(left, right))
                found.append(right)
        return found[:-1]

    def _segments(self) -> Iterator[tuple[int, int]]:
        start = 0
        for end in [*self._line_anchors(), self.size]:
            if end - start > LONG_SEGMENT * self.per_chunk:
                for anchor in self._word_anchors(start, end):
                    yield start, anchor
                    start = anchor
            yield start, end
            start = end

    def _line_anchors(self) -> list[int]:
        breaks = [i for i in range(1, self.size) if self.levels[i] >= LINE]
        scored = []
        for last, here, after in zip([0, *breaks], breaks, [*breaks[1:], self.size], strict=False):
            if self.per_chunk <= here <= self.size - self.per_chunk:
                scored.append((here, (after - here, _hash(here - last))))
        return _summits(scored, LINE_RADIUS * self.per_chunk)

    def _word_anchors(self, start: int, end: int) -> list[int]:
        inner = range(start + self.per_chunk, end - self.per_chunk)
        places = [i for i in inner if self.levels[i] >= SENTENCE]
        if len(places) * RARE_SENTENCES < end - start:
            places = list(inner)
        scored = [(i, (_hash(self.words[i - 1].text), 0)) for i in places]
        return _summits(scored, WORD_RADIUS * self.per_chunk)

    def _grid(self, start: int, end: int) -> Iterator[int]:
        """Each cut looks at its own window only: what happens in one window moves no other cut."""
        length = end - start
        parts = max(1, math.ceil(length / self.per_chunk - SLACK))
        reach = max(0, min(int(SNAP * self.per_chunk), (length // parts - 2) // 2))
        for part in range(1, parts):
            place = start + length * part // parts
            yield self._best(range(place - reach, place + reach + 1))

    def _fits(self, start: int, end: int) -> bool:
        return self.before[end] - self.before[start] <= self.max_tokens

    def _halves(self, start: int, end: int) -> Iterator[int]:
        """Cuts between two cuts with too many tokens between them."""
        if self._fits(start, end) or end - start < 2:
            return
        middle, reach = (start + end) // 2, (end - start) // 8
        cut = self._best(range(max(start + 1, middle - reach), min(end, middle + reach + 1)))
        yield from self._halves(start, cut)
        yield cut
        yield from self._halves(cut, end)

    def _best(self, boundaries: Sequence[int]) -> int:
        return max(boundaries, key=self._rank)

    def _rank(self, boundary: int) -> tuple[int, int]:
        return self.levels[boundary], _hash(self.words[boundary - 1].text, self.words[boundary].text)


def _words_per_chunk(words: Sequence[Word], max_tokens: int) -> int:
    density = max(1.0, sum(min(word.tokens, DENSITY_CAP) for word in words) / len(words))
    rounded = DENSITY_BASE * DENSITY_STEP ** round(math.log(density / DENSITY_BASE, DENSITY_STEP))
    return max(1, int(FILL * max_tokens / rounded))


def _summits(scored: Sequence[tuple[int, tuple[int, int]]], radius: int) -> list[int]:
    """Places whose score is beaten by none nearer than `radius`; of equal ones the first."""
    found = []
    for number, (place, score) in enumerate(scored):
        left = takewhile(lambda other: place - other[0] < radius, _from(scored, number, -1))  # noqa: B023
        right = takewhile(lambda other: other[0] - place < radius, _from(scored, number, 1))  # noqa: B023
        if all(other < score for _, other in left) and all(other <= score for _, other in right):
            found.append(place)
    return found


def _from(
    scored: Sequence[tuple[int, tuple[int, int]]], number: int, step: int
) -> Iterator[tuple[int, tuple[int, int]]]:
    """The neighbours of a place, nearest first."""
    number += step
    while 0 <= number < len(scored):
        yield scored[number]
        number += step


def _hash(*parts: object) -> int:
    data = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
