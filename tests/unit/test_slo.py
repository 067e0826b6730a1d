"""SLIs, budgets, burn rates and alerts against examples worked by hand; the clock is the test's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.freshness import Bucket
from schemas.spec import Slo
from streams.freshness.slo import BURN_WINDOWS, SloStatus, slo_status, window_start

SLO = Slo(threshold_seconds=30, objective=0.99, time_objective=0.995, window_days=30)
NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def minutes(states: str, end: datetime = NOON, **more: Any) -> list[Bucket]:
    """A minute for each letter, the last one just before `end`: f, s, i, u, or - where nobody evaluated."""
    names = {"f": "fresh", "s": "stale", "i": "incomplete", "u": "unknown"}
    start = end - len(states) * MINUTE
    return [
        Bucket(start + number * MINUTE, **{names[letter]: 1}, **more)
        for number, letter in enumerate(states)
        if letter != "-"
    ]


def history(states: str, days: int = 30, end: datetime = NOON) -> list[Bucket]:
    """FRESH hours for as long as the window, then minutes."""
    begin = end - len(states) * MINUTE
    hours = days * 24 - len(states) // 60
    start = begin - timedelta(hours=hours)
    old = [Bucket(start + timedelta(hours=hour), 60, fresh=60) for hour in range(hours)]
    return [*old, *minutes(states, end)]


def at(buckets: Sequence[Bucket], now: datetime = NOON, overdue: int = 0, slo: Slo = SLO) -> SloStatus:
    return slo_status(slo, buckets, now, overdue)


# -- time


def test_a_budget_of_99_5_percent_of_30_days_is_216_minutes() -> None:
    for bad, left in ((0, 1.0), (54, 0.75), (216, 0.0), (432, -1.0)):
        found = at(history("s" * bad + "f" * (480 - bad))).time
        assert (found.bad_minutes, found.minutes) == (bad, 43_200)
        assert found.budget_remaining_ratio == pytest.approx(left)
        assert found.sli == pytest.approx(1 - bad / 43_200)


def test_it_is_the_whole_windows_however_short_the_history_is() -> None:
    found = at(minutes("f" * 8 + "ss")).time
    assert (found.bad_minutes, found.minutes, found.sli) == (2, 10, 0.8)
    assert found.budget_remaining_ratio == pytest.approx(1 - 2 / 216)


def test_one_bad_minute_in_an_hour_burns_3_3_times_too_fast() -> None:
    """Of an hour 0.3 minutes may be bad. 14.4 times that is 4.32 minutes: 2 % of 216."""
    assert at(history("s" + "f" * 59)).time.burn_rates["1h"] == pytest.approx(1 / 0.3)
    assert 14.4 * 0.3 == pytest.approx(4.32) == pytest.approx(0.02 * 216)
    assert at(minutes("s" + "f" * 9)).time.burn_rates["1h"] == pytest.approx(1 / 0.3), (
        "with little history too"
    )


def test_a_full_outage_burns_200_times_too_fast() -> None:
    found = at(history("s" * 4320)).time
    assert found.burn_rates == pytest.approx(dict.fromkeys(BURN_WINDOWS, 200.0))
    assert found.budget_remaining_ratio == pytest.approx(1 - 4320 / 216)


def test_an_outage_pages_once_7_2_percent_of_the_hour_are_bad_and_resets_when_5_minutes_are_clear() -> None:
    """4.32 minutes, so with the fifth one."""
    firing = {bad: at(history("f" * (60 - bad) + "s" * bad)).alerts for bad in range(7)}
    assert [bad for bad, alerts in firing.items() if "time:page_1h" in alerts] == [5, 6]
    outage = "f" * 300 + "s" * 6
    for clear in range(8):
        alerts = at(
            history(outage + "f" * clear + "f" * (54 - clear))[: -(54 - clear)], NOON - (54 - clear) * MINUTE
        )
        assert ("time:page_1h" in alerts.alerts) == (clear < 5), clear


def test_both_windows_must_exceed() -> None:
    slow = at(history("s" * 11 + "f" * 349))
    assert slow.time.burn_rates["6h"] > 6
    assert slow.alerts == [], "the last half hour is clear"
    short = at(history("f" * 59 + "s"))
    assert short.time.burn_rates["5m"] == pytest.approx(40)
    assert short.alerts == [], "an hour with one bad minute is none"
    both = at(history("s" * 9 + "f" * 349 + "ss"))
    assert both.alerts == ["time:page_6h"]


def test_a_slow_leak_is_a_ticket() -> None:
    """Of three days 21.6 minutes may be bad, of six hours 1.8."""
    assert at(history("s" * 20 + "f" * 4298 + "ss")).alerts == ["time:ticket_3d"]
    assert at(history("s" * 19 + "f" * 4299 + "ss")).alerts == []
    assert at(history("s" * 21 + "f" * 4298 + "s")).alerts == [], "it has stopped"


def test_the_most_urgent_alert_comes_first() -> None:
    assert at(history("s" * 360)).alerts == ["time:page_1h", "time:page_6h", "time:ticket_3d"]


def test_incomplete_minutes_are_apart() -> None:
    found = at(minutes("iiiiffff")).time
    assert (found.bad_minutes, found.minutes, found.sli) == (0, 4, 1.0)
    assert at(minutes("ii")).time.sli is None
    assert at(minutes("ii")).time.budget_remaining_ratio == 1.0


def test_unknown_is_bad_and_so_is_a_minute_that_nobody_evaluated() -> None:
    found = at(minutes("ffu-" + "f" * 6)).time
    assert (found.bad_minutes, found.minutes, found.sli) == (2, 10, 0.8)
    assert found.burn_rates["1h"] == pytest.approx(2 / 0.3)


def test_so_is_what_an_hour_lacks() -> None:
    hour = Bucket(NOON - timedelta(hours=1), 60, fresh=50, stale=3, incomplete=4)
    found = at([hour]).time
    assert (found.bad_minutes, found.minutes) == (6, 56)


def test_a_monitor_that_died_burns_until_now() -> None:
    late = at(minutes("f" * 60, NOON), NOON + timedelta(minutes=30, seconds=59))
    assert (late.time.bad_minutes, late.time.minutes) == (30, 90)
    assert "time:page_1h" in late.alerts


def test_minutes_before_the_first_row_are_none() -> None:
    assert at([]).time.minutes == 0
    assert at([]).time.sli is None
    assert at(minutes("f")).time.minutes == 1


def test_rows_of_workers_alone_say_that_nobody_evaluated() -> None:
    found = at([Bucket(NOON - 2 * MINUTE, good=5), *minutes("f")])
    assert (found.time.bad_minutes, found.time.minutes) == (1, 2)


def test_the_minute_that_has_begun_counts_once_it_has_a_verdict() -> None:
    now = NOON + timedelta(seconds=2)
    assert at(minutes("fff"), now).time.minutes == 3, "nobody has got round to it"
    worker = Bucket(NOON, good=1)
    assert at([*minutes("fff"), worker], now).time.minutes == 3
    stale = at(minutes("fffs", NOON + MINUTE), now).time
    assert (stale.bad_minutes, stale.minutes) == (1, 4), "an outage shows at once"
    incomplete = at(minutes("fffi", NOON + MINUTE), now).time
    assert (incomplete.bad_minutes, incomplete.minutes) == (0, 3)


def test_an_older_row_says_that_the_collection_is_older() -> None:
    old = Bucket(NOON - timedelta(days=31), 60, fresh=60)
    found = at([old, *minutes("f" * 60)]).time
    assert (found.minutes, found.bad_minutes) == (43_200, 43_140)


def test_the_window_begins_with_a_whole_hour() -> None:
    now = NOON + timedelta(minutes=59, seconds=59)
    assert window_start(SLO, now) == NOON - timedelta(days=30)
    edge = Bucket(NOON - timedelta(days=30), 60, stale=60)
    assert at([edge, *minutes("f")], now).time.bad_minutes >= 60
    assert at([edge], now + timedelta(seconds=1)).time.minutes == 43_200


def test_a_rolled_up_hour_is_cut_by_its_part() -> None:
    """A quarter of it is inside the hour that ends at a quarter past: 3 of 12 bad minutes."""
    hour = Bucket(NOON - timedelta(hours=1), 60, fresh=48, stale=12, good=80, bad=20)
    found = at([hour, *minutes("f" * 45, NOON + 45 * MINUTE)], NOON + timedelta(minutes=44, seconds=30))
    assert found.time.burn_rates["1h"] == pytest.approx(3 / 0.3)
    assert found.burn_rates["1h"] == pytest.approx(5 / 25 / 0.01)
    assert (found.good, found.bad) == (80, 20)


# -- events


def test_the_event_sli_is_the_share_within_the_threshold() -> None:
    found = at([Bucket(NOON - MINUTE, fresh=1, good=995, bad=5)])
    assert (found.sli, found.good, found.bad) == (0.995, 995, 5)
    assert found.budget_remaining_ratio == pytest.approx(0.5), "10 of 1000 are allowed"
    assert found.burn_rates == pytest.approx(dict.fromkeys(BURN_WINDOWS, 0.5))


def test_without_a_change_nothing_is_said_and_nothing_spent() -> None:
    found = at(minutes("f" * 10))
    assert (found.sli, found.budget_remaining_ratio) == (None, 1.0)
    assert set(found.burn_rates.values()) == {0.0}


def test_what_is_overdue_is_bad_at_once_in_every_window() -> None:
    found = at([Bucket(NOON - timedelta(days=10), good=90), *minutes("f")], overdue=10)
    assert (found.sli, found.bad, found.overdue) == (0.9, 0, 10)
    assert found.budget_remaining_ratio == pytest.approx(1 - 10 / 1)
    assert found.burn_rates == pytest.approx(dict.fromkeys(BURN_WINDOWS, 100.0))
    events = [alert for alert in found.alerts if alert.startswith("events:")]
    assert events == ["events:page_1h", "events:page_6h", "events:ticket_3d"]
    assert at([], overdue=1).sli == 0.0


def test_events_burn_by_their_own_windows() -> None:
    rows = [Bucket(NOON - 30 * MINUTE, fresh=1, good=80, bad=20), *minutes("f" * 29, good=10)]
    found = at(rows)
    assert found.burn_rates["5m"] == 0
    assert found.burn_rates["30m"] == pytest.approx(20 / 390 / 0.01)
    assert found.alerts == ["events:ticket_3d"], "the last five minutes are clear"


# -- as JSON


def test_the_json_has_the_shape_that_was_promised() -> None:
    found = at([Bucket(NOON - MINUTE, fresh=1, good=3, bad=1)], overdue=1).as_json()
    rates = {"5m", "30m", "1h", "6h", "3d"}
    assert list(found) == [
        "threshold_seconds",
        "objective",
        "window_days",
        "sli",
        "budget_remaining_ratio",
        "burn_rates",
        "good",
        "bad",
        "overdue",
        "alerts",
        "time",
    ]
    assert list(found["time"]) == [
        "objective",
        "sli",
        "budget_remaining_ratio",
        "burn_rates",
        "bad_minutes",
        "minutes",
    ]
    assert set(found["burn_rates"]) == set(found["time"]["burn_rates"]) == rates
    assert (found["threshold_seconds"], found["objective"], found["window_days"]) == (30.0, 0.99, 30)
    assert (found["good"], found["bad"], found["overdue"], found["sli"]) == (3, 1, 1, 0.6)
    assert (found["time"]["objective"], found["time"]["sli"], found["time"]["minutes"]) == (0.995, 1.0, 1)
