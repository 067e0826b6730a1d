"""The chunker on real text: what fits stays whole, what is edited changes little."""

from __future__ import annotations

import random
import re
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from connectors.encoder.chunker import TokenChunker
from schemas.errors import SettingsError
from tests.fixtures.model import tokenizer_json

GUIDES = Path(__file__).parents[2] / "infra" / "sample" / "guides"
LIMIT = 254


@pytest.fixture(scope="module")
def chunker() -> TokenChunker:
    return TokenChunker.from_file(tokenizer_json(), limit=LIMIT, max_tokens=126)


def prose(sentences: int, seed: int = 1, *, paragraph: int = 6) -> str:
    """Sentences of seeded words; a blank line after every `paragraph` or so of them, never if 0."""
    draw = random.Random(seed)
    made = []
    for number in range(sentences):
        words = [draw.choice(WORDS) for _ in range(draw.randint(6, 18))]
        gap = "\n\n" if paragraph and number % paragraph == draw.randint(0, paragraph - 1) else " "
        made.append(" ".join(words).capitalize() + "." + gap)
    return "".join(made)


WORDS = (  # noqa: SIM905  a list of fifty literals would be fifty lines
    "winter jacket river stone early keep every careful lantern small paper morning shop repair bright cotton wheel "
    "mountain supper garden gentle window north ladder bread silver travel quiet harbour market pocket needle summer "
    "kettle orange bridge letter marble candle button forest saddle island copper spring basket village the a of and"
).split()


def changed(chunker: TokenChunker, before: set[str], document: str) -> int:
    return len(set(chunker.chunks(document)) - before)


def test_a_document_that_fits_is_one_chunk(chunker: TokenChunker) -> None:
    assert chunker.chunks("  A short profile.\n\nTwo paragraphs. \n") == [
        "A short profile.\n\nTwo paragraphs."
    ]
    exactly = " ".join(["word"] * 126)
    assert chunker.chunks(exactly) == [exactly]
    assert len(chunker.chunks(exactly + " word")) == 2


@pytest.mark.parametrize("blank", ["", " ", "\n\t \n", "\u2003\u00a0"])
def test_a_blank_document_has_no_chunks(chunker: TokenChunker, blank: str) -> None:
    assert chunker.chunks(blank) == []


def test_the_tokenizers_own_truncation_and_padding_are_off() -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_json()))
    assert len(tokenizer.encode("word " * 500)) == len(tokenizer.encode("word")) == 128
    chunker = TokenChunker(tokenizer, limit=LIMIT)
    assert chunker.count("word " * 500) == 500
    assert chunker.count("word") == 1
    assert max(chunker.count(chunk) for chunk in chunker.chunks(prose(200))) > 128
    assert len(tokenizer.encode("word")) == 128, "the caller's tokenizer is left as it was"


def test_zero_is_the_models_limit() -> None:
    assert TokenChunker.from_file(tokenizer_json(), limit=LIMIT).max_tokens == LIMIT


def test_more_than_the_model_reads_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"max_tokens is 255.*at most 254"):
        TokenChunker.from_file(tokenizer_json(), limit=LIMIT, max_tokens=255)


def test_overlap_is_at_most_half() -> None:
    with pytest.raises(SettingsError, match=r"overlap_tokens is 64.*126"):
        TokenChunker.from_file(tokenizer_json(), limit=LIMIT, max_tokens=126, overlap_tokens=64)


def test_overlap_repeats_the_end_of_the_chunk_before() -> None:
    chunker = TokenChunker.from_file(tokenizer_json(), limit=LIMIT, max_tokens=126, overlap_tokens=20)
    chunks = chunker.chunks(prose(120))
    assert max(map(chunker.count, chunks)) <= 126
    for before, chunk in pairwise(chunks):
        head = " ".join(chunk.split()[:8])
        assert head in " ".join(before.split())


@pytest.mark.parametrize(
    "document", [prose(200), prose(200, paragraph=0)], ids=["paragraphs", "one paragraph"]
)
def test_replacing_a_word_changes_two_chunks(chunker: TokenChunker, document: str) -> None:
    before = set(chunker.chunks(document))
    assert len(before) >= 20
    words = list(re.finditer(r"\S+", document))
    counts = []
    for number, word in enumerate(words[::5]):
        other = ("cat", "extraordinarily", "unbelievable-tokenisation", "harbour")[number % 4]
        counts.append(changed(chunker, before, document[: word.start()] + other + document[word.end() :]))
    assert statistics.mean(counts) < 1.2
    assert sum(count > 2 for count in counts) <= len(counts) * 0.005


@pytest.mark.parametrize("path", sorted(GUIDES.glob("*.md")), ids=lambda path: path.stem)
def test_replacing_a_word_of_a_guide_changes_two_chunks(chunker: TokenChunker, path: Path) -> None:
    document = path.read_text()
    before = set(chunker.chunks(document))
    words = list(re.finditer(r"\S+", document))[3::93]
    counts = [changed(chunker, before, document[: w.start()] + "cat" + document[w.end() :]) for w in words]
    assert statistics.mean(counts) < 1.2
    assert sum(count > 2 for count in counts) <= 1


@pytest.mark.parametrize(
    "document", [prose(200), prose(200, paragraph=0)], ids=["paragraphs", "one paragraph"]
)
def test_inserting_words_changes_three_chunks_on_average(chunker: TokenChunker, document: str) -> None:
    before = set(chunker.chunks(document))
    places = [word.start() for word in re.finditer(r"\S+", document)][::29]
    counts = [changed(chunker, before, f"{document[:at]}a few more {document[at:]}") for at in places]
    assert statistics.mean(counts) <= 3


@pytest.mark.parametrize(
    "document", [prose(300), prose(300, paragraph=0)], ids=["paragraphs", "one paragraph"]
)
def test_chunks_are_well_filled(chunker: TokenChunker, document: str) -> None:
    counts = [chunker.count(chunk) for chunk in chunker.chunks(document)]
    assert statistics.mean(counts) >= 0.68 * 126


def test_cuts_prefer_the_ends_of_sentences(chunker: TokenChunker) -> None:
    chunks = chunker.chunks(prose(300))
    assert sum(chunk.endswith(".") for chunk in chunks) >= 0.9 * len(chunks)


def test_the_same_cuts_in_another_process(chunker: TokenChunker) -> None:
    program = (
        "import sys, hashlib; from pathlib import Path; from connectors.encoder import TokenChunker;"
        f"c = TokenChunker.from_file(Path({str(tokenizer_json())!r}), limit=254, max_tokens=126);"
        "print(hashlib.sha256('|'.join(c.chunks(sys.stdin.read())).encode()).hexdigest());"
        "assert 'torch' not in sys.modules, 'cutting must not load torch'"
    )
    document = prose(150)
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            input=document,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_a_graphemes_parts_stay_together(chunker: TokenChunker) -> None:
    family = "👩‍👩‍👧‍👦"
    assert "".join(chunker.chunks(family * 400)).count(family) == 400
    assert all(len(chunk) % len(family) == 0 for chunk in chunker.chunks(family * 400))
