"""Sketches of minutes, frozen and merged, say what a sketch of the whole would: any window is a merge (DESIGN 7)."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.freshness.sketches import (
    QUANTILES,
    RELATIVE_ACCURACY,
    freeze,
    merged,
    new_sketch,
    summary,
    thaw,
)

#: From below a microsecond to a year; 0 is what a negative delay is clamped to.
DELAYS = st.one_of(st.just(0.0), st.floats(1e-7, 31_536_000.0), st.floats(0.001, 10.0))
CHANGES = st.tuples(DELAYS, st.integers(1, 50))
MINUTES = st.lists(st.lists(CHANGES, max_size=30), min_size=1, max_size=8)


def frozen(changes: list[tuple[float, int]]) -> dict[str, object]:
    """A minute's sketch, as it comes back from a jsonb column."""
    sketch = new_sketch()
    for delay, weight in changes:
        sketch.add(delay, weight)
    found: dict[str, object] = json.loads(json.dumps(freeze(sketch)))
    return found


def exact(changes: list[tuple[float, int]], quantile: float) -> float:
    """The delay of the change at the quantile's rank."""
    values = sorted(delay for delay, weight in changes for _ in range(weight))
    return values[math.floor(quantile * (len(values) - 1))]


@given(MINUTES)
def test_merged_minutes_are_the_whole_within_one_percent(minutes: list[list[tuple[float, int]]]) -> None:
    whole = [change for minute in minutes for change in minute]
    found = summary(merged(frozen(minute) for minute in minutes))
    weight = sum(number for _, number in whole)
    assert found["count"] == weight
    if not whole:
        assert set(found.values()) == {None, 0}
        return
    assert found["max"] == max(delay for delay, _ in whole)
    assert found["mean"] == pytest.approx(sum(delay * number for delay, number in whole) / weight, rel=1e-9)
    for name, quantile in QUANTILES:
        assert found[name] == pytest.approx(exact(whole, quantile), rel=RELATIVE_ACCURACY * 1.001, abs=1e-9)


@given(MINUTES)
def test_merging_is_the_same_as_one_sketch_in_any_order(minutes: list[list[tuple[float, int]]]) -> None:
    parts = [frozen(minute) for minute in minutes]
    whole = thaw(frozen([change for minute in minutes for change in minute]))
    for order in (parts, parts[::-1]):
        found = merged(order)
        assert {**summary(found), "mean": None} == {**summary(whole), "mean": None}
        assert found.sum == pytest.approx(whole.sum, rel=1e-9)


@given(st.lists(CHANGES, max_size=40))
def test_freeze_and_thaw_lose_nothing(changes: list[tuple[float, int]]) -> None:
    once = frozen(changes)
    again = json.loads(json.dumps(freeze(thaw(once))))
    assert again == once
    assert summary(thaw(again)) == summary(thaw(once))


def test_no_minutes_are_an_empty_summary() -> None:
    empty = {"p50": None, "p95": None, "p99": None, "max": None, "mean": None, "count": 0}
    assert summary(merged([])) == empty
    assert summary(merged([frozen([]), frozen([])])) == empty
