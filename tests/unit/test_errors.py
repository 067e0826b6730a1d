"""The tree drawn at the top of schemas/errors.py is the tree, and each error has exactly one outcome."""

from __future__ import annotations

import inspect
import re

import pytest

from schemas import errors
from schemas.errors import Blocked, DeadLetter, Halt, PositionConflict, Retry, UpwellError

OUTCOMES = (Retry, DeadLetter, Blocked, Halt)
CLASSES: dict[str, type[UpwellError]] = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, UpwellError) and kind.__module__ == errors.__name__
}


def drawn() -> dict[str, str | None]:
    """Parent by name, read off the docstring by indentation."""
    parents: dict[str, str | None] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^( {4}[ |`-]*)([A-Z]\w+)(  |$)", line)
        if not found:
            continue
        depth, name = len(found[1]), found[2]
        while path and path[-1][0] >= depth:
            path.pop()
        parents[name] = path[-1][1] if path else None
        path.append((depth, name))
    return parents


def test_the_tree_is_as_drawn() -> None:
    actual = {
        name: None if kind is UpwellError else kind.__bases__[0].__name__ for name, kind in CLASSES.items()
    }
    assert drawn() == actual


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"UpwellError"}))
def test_each_error_has_exactly_one_outcome_and_says_what_it_is(name: str) -> None:
    kind = CLASSES[name]
    assert len(kind.__bases__) == 1
    assert len([outcome for outcome in OUTCOMES if issubclass(kind, outcome)]) == 1
    assert kind.__doc__


def test_exit_codes() -> None:
    """2 stops the supervisor's restarts; a neighbour that is away is 3; another owner is cured by a restart."""
    found = {name: kind.exit_code for name, kind in CLASSES.items()}
    retries = {name: code for name, code in found.items() if issubclass(CLASSES[name], Retry)}
    assert {retries.pop("SourceRefused"), retries.pop("SinkRefused")} == {2}
    assert set(retries.values()) == {3}
    halts = {name: code for name, code in found.items() if issubclass(CLASSES[name], Halt)}
    cured = {halts.pop(name) for name in ("PositionConflict", "DeploymentChanged", "ModelHung")}
    assert cured == {PositionConflict.exit_code} == {1}
    assert set(halts.values()) == {2}
