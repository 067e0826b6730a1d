"""tests/FAULTS.md is complete and true: its numbers have no gap, its tests exist, and the code says its lines."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.said import quoted, said

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "tests" / "FAULTS.md").read_text(encoding="utf-8")
HISTORIES: Final = range(1, 40)


class Row(NamedTuple):
    """One fault, cell by cell."""

    number: str
    fault: str
    does: str
    says: str
    test: str


def rows() -> list[Row]:
    """Every row of every table; one with another number of cells is an error."""
    lines = [line for line in PAGE.splitlines() if re.match(r"\| \d", line)]
    return [Row(*line.strip("| ").split(" | ")) for line in lines]


ROWS: Final = rows()
SAID: Final = said()


def test_the_numbers_have_no_gap() -> None:
    assert [row.number for row in ROWS] == [str(number) for number in range(1, len(ROWS) + 1)]
    assert len(ROWS) >= 98


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.number)
def test_its_test_exists(row: Row) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.test)
    assert named, row.test
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in set(_tests(tree)), f"{path}::{name}"


def _tests(tree: ast.Module) -> list[str]:
    """Names of a module's tests; a state machine's is assigned."""
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assigned = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    return [name for name in (*functions, *assigned) if name.lower().startswith("test")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.number)
def test_the_code_says_its_line(row: Row) -> None:
    pieces = quoted(row.says)
    assert pieces or row.says == "nothing", row.says
    for piece in pieces:
        assert piece in SAID, piece


def test_every_history_has_its_row() -> None:
    """Histories that broke earlier designs: each has a test here."""
    named = {int(number) for row in ROWS for number in re.findall(r"\bH(\d+)\b", row.fault)}
    assert set(HISTORIES) <= named, sorted(set(HISTORIES) - named)


def test_other_pages_lead_here() -> None:
    for page in ("README.md", "infra/RUNBOOK.md"):
        assert "tests/FAULTS.md" in (ROOT / page).read_text(encoding="utf-8"), page
