"""tests/BAD_INPUT.md is complete and true: every row names tests that exist; and the cases that need no database."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, Final

import pytest

from connectors.postgres.source import SourceColumn, TableInfo
from schemas.errors import DimensionMismatch, SettingsError
from schemas.sink import GenerationInfo
from schemas.spec import Chunking, CollectionSpec
from streams.migration import ModelFacts, layout
from streams.settings import Settings
from streams.worker import Parts, Worker
from tests.fakes.encoder import FakeEncoder
from tests.fakes.store import FakeStore

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = (ROOT / "BAD_INPUT.md").read_text(encoding="utf-8")
ROWS: Final = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "`test_" in line]


def named_in(path: Path) -> set[str]:
    """Names of all test functions in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| "))
def test_every_row_names_tests_that_exist(row: list[str]) -> None:
    named = re.findall(r"`(\w+/test_\w+\.py)`: ((?:`test_\w+`(?:, )?)+)", row[-1])
    assert named, row
    for path, tests in named:
        assert set(re.findall(r"test_\w+", tests)) <= named_in(ROOT / path), path


def test_there_are_rows() -> None:
    assert len(ROWS) >= 25


COLUMN: Final = SourceColumn("id", "bigint", not_null=True, toastable=False, generated=False)
INFO: Final = TableInfo("shop.content", (COLUMN,), (COLUMN,), full=True)


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        (Chunking(max_tokens=127), r"chunk\.max_tokens 127 is above the model's limit 126"),
        (Chunking(max_tokens=10, overlap_tokens=10), r"chunk\.overlap_tokens must be below max_tokens"),
    ],
)
def test_chunks_that_the_model_would_cut_off(chunk: Chunking, said: str) -> None:
    spec = CollectionSpec(table="shop.content", template="{{ id }}", chunk=chunk)
    with pytest.raises(SettingsError, match=said) as caught:
        layout("content", spec, INFO, ModelFacts("package:x", 4, 126))
    assert "\n" not in str(caught.value)


async def test_a_model_of_another_dimension_stops_the_worker_before_it_embeds() -> None:
    """It was replaced under its name: exit 2 with one line, nothing is claimed."""
    told: list[int] = []
    encoder: Any = FakeEncoder(dimension=3)
    live = GenerationInfo("content", 1, "f", "package:fake", 4, "{{ id }}", 126, 0, "live")
    parts = Parts(
        settings=Settings(collections={"content": CollectionSpec(table="shop.content", template="{{ id }}")}),
        slot="w",
        store=FakeStore([live]),
        load_encoder=lambda name: encoder,
        make_recipe=lambda generation, encoder: pytest.fail("it was used"),
        make_intakes=lambda needs: {},
        generations=[live],
        on_stopping=told.append,
    )
    worker = Worker(parts)
    await worker._embed()
    assert isinstance(worker._fatal, DimensionMismatch)
    line = str(worker._fatal)
    assert "has 3 dimensions, generation 1 of content has 4" in line
    assert "\n" not in line
    assert told == [DimensionMismatch.exit_code] == [2]
