"""Every guard that is taken out is noticed, and the list is of what there is."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache

import pytest

from tests.mutations.guards import GUARDS, Guard
from tests.mutations.runner import ROOT, change


@cache
def names_in(file: str) -> frozenset[str]:
    """Names of a module's tests."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    found = (node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(name for name in found if name.startswith("test_"))


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_stands_where_the_list_says_once_and_its_tests_exist(guard: Guard) -> None:
    assert change(guard) != (ROOT / guard.file).read_text(encoding="utf-8")
    assert guard.tests
    assert guard.why
    for test in guard.tests:
        file, _, name = test.partition("::")
        assert name.partition("[")[0] in names_in(file), test


def test_each_entry_has_a_name_of_its_own() -> None:
    assert len({guard.name for guard in GUARDS}) == len(GUARDS)


@pytest.mark.timeout(1500)
def test_each_guard_that_is_taken_out_is_noticed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutations"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert f"{len(GUARDS)} of {len(GUARDS)} noticed" in done.stdout
