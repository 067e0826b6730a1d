"""What holds of any history: rolling it up changes no SLI, and nothing bad raises a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.freshness import Bucket
from schemas.spec import Slo
from streams.freshness.slo import BURN_WINDOWS, slo_status

SLO = Slo(window_days=2)
NOW = datetime(2026, 3, 10, 17, 25, 40, tzinfo=UTC)
HOUR = timedelta(hours=1)

#: A minute: its verdict or none, changes in time and late ones.
MINUTES = st.tuples(
    st.sampled_from(["fresh", "fresh", "stale", "incomplete", "unknown", ""]),
    st.integers(0, 5),
    st.integers(0, 2),
)
HISTORIES = st.lists(MINUTES, min_size=1, max_size=400)


def buckets(history: Sequence[tuple[str, int, int]]) -> list[Bucket]:
    """The history begins with a whole hour, four hours and more before now."""
    start = NOW.replace(minute=0, second=0, microsecond=0) - 7 * HOUR
    found = [
        Bucket(start + number * timedelta(minutes=1), good=good, bad=bad, **({verdict: 1} if verdict else {}))
        for number, (verdict, good, bad) in enumerate(history)
    ]
    return [found[0], *(each for each in found[1:] if each != Bucket(each.start))]


def rolled_up(rows: Sequence[Bucket], hours: int) -> list[Bucket]:
    """The first hours as one row each; hours without rows stay absent."""
    first = rows[0].start
    found = []
    for hour in range(hours):
        inside = [row for row in rows if first + hour * HOUR <= row.start < first + (hour + 1) * HOUR]
        sums = {
            name: sum(getattr(row, name) for row in inside)
            for name in ("fresh", "stale", "incomplete", "unknown", "good", "bad")
        }
        if inside:
            found.append(Bucket(first + hour * HOUR, 60, **sums))
    return [*found, *(row for row in rows if row.start >= first + hours * HOUR)]


@given(HISTORIES, st.integers(0, 6))
def test_rolling_up_whole_hours_changes_nothing_but_windows_that_cut_them(
    history: list[tuple[str, int, int]], hours: int
) -> None:
    rows = buckets(history)
    before, after = slo_status(SLO, rows, NOW), slo_status(SLO, rolled_up(rows, hours), NOW)
    assert replace(after, burn_rates={}, alerts=(), time=replace(after.time, burn_rates={})) == replace(
        before, burn_rates={}, alerts=(), time=replace(before.time, burn_rates={})
    )
    assert after.burn_rates["3d"] == before.burn_rates["3d"]
    assert after.time.burn_rates["3d"] == before.time.burn_rates["3d"]


@given(HISTORIES, st.data())
def test_more_that_is_bad_never_raises_a_budget_and_never_slows_a_burn(
    history: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    rows = buckets(history)
    number = data.draw(st.integers(0, len(rows) - 1))
    row = rows[number]
    worse = [*rows]
    worse[number] = replace(row, fresh=0, stale=row.fresh + row.stale, bad=row.bad + 1)
    overdue = data.draw(st.integers(0, 3))
    before, after = slo_status(SLO, rows, NOW), slo_status(SLO, worse, NOW, overdue)
    assert after.budget_remaining_ratio <= before.budget_remaining_ratio + 1e-9
    assert after.time.budget_remaining_ratio <= before.time.budget_remaining_ratio
    assert (after.time.sli is None) == (before.time.sli is None)
    assert (after.time.sli or 0) <= (before.time.sli or 0)
    for name in BURN_WINDOWS:
        assert after.burn_rates[name] >= before.burn_rates[name] - 1e-9
        assert after.time.burn_rates[name] >= before.time.burn_rates[name]


@given(HISTORIES)
def test_what_is_counted_adds_up(history: list[tuple[str, int, int]]) -> None:
    rows = buckets(history)
    found = slo_status(SLO, rows, NOW)
    assert found.good == sum(row.good for row in rows)
    assert found.bad == sum(row.bad for row in rows)
    fresh = sum(row.fresh for row in rows if row.start <= NOW)
    assert found.time.minutes - found.time.bad_minutes == fresh
    assert found.time.sli is None or found.time.sli == pytest.approx(fresh / found.time.minutes)
