"""Each history of tests/HISTORIES.md is replayed by tests that exist and name it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from tests.mutations.guards import GUARDS

TESTS: Final = Path(__file__).parents[1]
NUMBERS: Final = range(1, 40)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def rows() -> dict[int, list[str]]:
    """Tests by number of their history."""
    table = (TESTS / "HISTORIES.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| H(\d+) \|[^|]*\|([^|]*)\|", table, re.MULTILINE)
    return {int(number): re.findall(r"`([^`]+)`", tests) for number, tests in found}


@cache
def definitions(file: str) -> dict[str, str]:
    """Name and docstring of each function of a module, those of its classes as `Class.function`, by that name."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    found: dict[str, str] = {}

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, Definition):
                found[prefix + node.name] = f"{node.name} {ast.get_docstring(node) or ''}"
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{node.name}.")

    collect(tree.body, "")
    return found


def test_the_table_has_them_all() -> None:
    assert list(rows()) == list(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_history_has_tests_that_name_it(number: int) -> None:
    tests = rows()[number]
    assert tests
    for test in tests:
        file, _, name = test.partition("::")
        assert name in definitions(file), test
        words = re.findall(r"[Hh](\d+)(?![0-9])", definitions(file)[name])
        assert str(number) in words, f"{test} does not name H{number}"


def test_the_guards_are_against_histories_that_there_are() -> None:
    assert {number for guard in GUARDS for number in guard.histories} <= set(NUMBERS)


def test_h12_no_statement_removes_a_marker_but_that_of_a_fence() -> None:
    """A marker that is gone lets an old insert, of a dead letter or a partition that lags, revive its key."""
    folder = TESTS.parent / "connectors" / "postgres" / "queries"
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.sql"))]
    removing = [
        block.partition("\n")[0]
        for text in texts
        for block in text.split("-- name: ")
        if re.search(r"(DELETE\s+FROM|TRUNCATE)\s+(\{record\}|upwell\.record)", block)
    ]
    assert removing == ["remove_fenced"]
