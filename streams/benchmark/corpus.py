"""Real English of mixed lengths, from what is installed: texts of the sample shop, docstrings of the standard library.

Nothing is downloaded. The same seed gives the same texts with the same Python; all sentences of a document carry its
number, so that no two documents, and no two chunks, have the same text.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

#: Words of a sentence that is taken; shorter ones are headings, longer ones are lists.
FEWEST_WORDS: Final = 6
MOST_WORDS: Final = 40
#: Part of a sentence that is letters and blanks: the rest of the docstrings is code and tables.
PROSE: Final = 0.85
#: A document has e ** N(MEAN, SPREAD) sentences.
MEAN: Final = 1.0
SPREAD: Final = 1.0
MOST_SENTENCES: Final = 80
#: One document in so many is LONG: 20 chunks and more.
LONG_EVERY: Final = 100
LONG_SENTENCES: Final = 220
_END: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents by number, from 0; each is made when it is asked for."""

    seed: int

    def mixed(self, number: int) -> str:
        """From one sentence to 20 chunks."""
        chance = random.Random(f"mixed/{self.seed}/{number}")
        if number % LONG_EVERY == LONG_EVERY // 2:
            return self._document(chance, number, LONG_SENTENCES)
        return self._document(
            chance, number, min(MOST_SENTENCES, max(1, round(chance.lognormvariate(MEAN, SPREAD))))
        )

    def short(self, number: int) -> str:
        """One sentence."""
        return self._document(random.Random(f"short/{self.seed}/{number}"), number, 1)

    def long(self, number: int) -> str:
        """20 chunks and some."""
        return self._document(random.Random(f"long/{self.seed}/{number}"), number, LONG_SENTENCES)

    def identity(self, documents: int) -> str:
        """SHA-256 of the first so many mixed documents."""
        digest = hashlib.sha256()
        for number in range(documents):
            digest.update(self.mixed(number).encode() + b"\0")
        return digest.hexdigest()

    def _document(self, chance: random.Random, number: int, count: int) -> str:
        """Consecutive sentences, a paragraph now and then, each with the document's number."""
        pool = sentences()
        first = chance.randrange(len(pool))
        parts: list[str] = []
        for place in range(count):
            sentence = pool[(first + place) % len(pool)]
            mark = f"{sentence[:-1]} ({number}){sentence[-1]}"
            parts += [mark, "\n\n" if place % 5 == 4 else " "]
        return "".join(parts).strip()


@cache
def sentences() -> tuple[str, ...]:
    """Every sentence, each once, in the order of files and lines."""
    found = dict.fromkeys(sentence for text in _texts() for sentence in _prose(text))
    return tuple(found)


def _texts() -> Iterator[str]:
    from infra import sample

    for row in sample.content():
        yield row.body
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _prose(text: str) -> Iterator[str]:
    """The sentences of a text that are prose."""
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _END.split(" ".join(paragraph.split())):
            words = len(sentence.split())
            if not FEWEST_WORDS <= words <= MOST_WORDS or sentence[-1] not in ".!?":
                continue
            letters = sum(letter.isalpha() or letter == " " for letter in sentence)
            if sentence[0].isupper() and letters >= PROSE * len(sentence):
                yield sentence
