"""What an SLO says of a collection: SLIs, error budgets, burn rates and alerts, from its history. Pure.

Two SLIs (reference/freshness.md 3.3), each with a budget of its own:

- **events**: the share of streamed changes that were searchable within the threshold. First loads and backfill are not
  among them. What is overdue now is bad at once, in every window, else a pipeline that stands would have no events.
- **time**: the share of minutes that were FRESH, from the collection's first row in the window on. INCOMPLETE minutes
  are left out. A minute that nobody evaluated is UNKNOWN, and bad, like what could not be read. The minute that has
  just begun counts once it has a verdict, with the worst so far: an outage shows at once, and a minute that nobody has
  got round to yet is nobody's fault.

**Budgets.** Of the time, the whole window's: 99.5 % of 30 days allow 216 bad minutes, however short the history is. Of
the events, that of the events of the window, as nobody knows how many will come. What is left is 1 - bad / allowed;
less than nothing is left of a budget that was overdrawn.

**Burn rates** say how many times faster than just allowed the budget goes (SRE workbook, ch. 5). Of the time: bad
minutes over those allowed in a window of that length, so 14.4 over an hour always is 4.32 minutes, 2 % of 30 days. Of
the events: the bad share of the window's events over the allowed share.

**Windows** end with the last minute that counts. Those of burn rates are so many whole minutes, and a rolled-up row
that one of them begins within counts by the part that is inside. The SLO's own window begins with a whole hour, up to
an hour early, so that it cuts no row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from schemas.freshness import Bucket
from schemas.spec import Slo

MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
BURN_WINDOWS: Final[Mapping[str, timedelta]] = {
    "5m": timedelta(minutes=5),
    "30m": timedelta(minutes=30),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "3d": timedelta(days=3),
}


@dataclass(frozen=True, slots=True)
class BurnAlert:
    """Fires while both windows burn faster than `rate`: the long one proves it, the short one ends it soon after."""

    name: str
    rate: float
    long: str
    short: str

    def fires(self, burn_rates: Mapping[str, float]) -> bool:
        return burn_rates[self.long] > self.rate and burn_rates[self.short] > self.rate


#: 2 %, 5 % and 10 % of a budget of 30 days.
BURN_ALERTS: Final = (
    BurnAlert("page_1h", 14.4, "1h", "5m"),
    BurnAlert("page_6h", 6.0, "6h", "30m"),
    BurnAlert("ticket_3d", 1.0, "3d", "6h"),
)


@dataclass(frozen=True, slots=True)
class TimeStatus:
    """The time SLI. `minutes`: those that count; `sli` is None while there are none."""

    objective: float
    sli: float | None
    budget_remaining_ratio: float
    burn_rates: Mapping[str, float]
    bad_minutes: int
    minutes: int


@dataclass(frozen=True, slots=True)
class SloStatus:
    """How a collection stands by its SLO. `sli` is None while there was no change; `overdue` is not part of `bad`.

    `alerts`: those that fire, as `events:page_1h` or `time:ticket_3d`, the most urgent first.
    """

    threshold_seconds: float
    objective: float
    window_days: int
    sli: float | None
    budget_remaining_ratio: float
    burn_rates: Mapping[str, float]
    good: int
    bad: int
    overdue: int
    alerts: Sequence[str]
    time: TimeStatus

    def as_json(self) -> dict[str, Any]:
        """`slo` of `upwell report --json`, of the page and of `upwell.evaluation`. Keys are only added."""
        return {
            "threshold_seconds": self.threshold_seconds,
            "objective": self.objective,
            "window_days": self.window_days,
            "sli": self.sli,
            "budget_remaining_ratio": self.budget_remaining_ratio,
            "burn_rates": dict(self.burn_rates),
            "good": self.good,
            "bad": self.bad,
            "overdue": self.overdue,
            "alerts": list(self.alerts),
            "time": {
                "objective": self.time.objective,
                "sli": self.time.sli,
                "budget_remaining_ratio": self.time.budget_remaining_ratio,
                "burn_rates": dict(self.time.burn_rates),
                "bad_minutes": self.time.bad_minutes,
                "minutes": self.time.minutes,
            },
        }


def slo_status(slo: Slo, buckets: Sequence[Bucket], now: datetime, overdue: int = 0) -> SloStatus:
    """How a collection stands at `now`.

    `buckets`: its history, oldest first, from `window_start(slo, now)` on; earlier rows say only that the collection is
    older. `overdue`: changes that wait, or lie in open dead letters, for longer than the threshold now.
    """
    end = _end(buckets, now)
    whole = _Window(buckets, window_start(slo, now), end)
    burning = {name: _Window(buckets, end - length, end) for name, length in BURN_WINDOWS.items()}
    bad = whole.bad_events + overdue
    events = whole.good_events + bad
    allowed = (1 - slo.objective) * events
    rates = {name: _event_rate(window, overdue, slo.objective) for name, window in burning.items()}
    time = _time_status(slo, whole, burning)
    return SloStatus(
        threshold_seconds=slo.threshold_seconds,
        objective=slo.objective,
        window_days=slo.window_days,
        sli=whole.good_events / events if events else None,
        budget_remaining_ratio=1 - bad / allowed if events else 1.0,
        burn_rates=rates,
        good=round(whole.good_events),
        bad=round(whole.bad_events),
        overdue=overdue,
        alerts=_alerts(rates, time.burn_rates),
        time=time,
    )


def window_start(slo: Slo, now: datetime) -> datetime:
    """Where the SLO's window begins: at a whole hour, as rows are rolled up by hours."""
    begin = now.astimezone(UTC) - timedelta(days=slo.window_days)
    return begin.replace(minute=0, second=0, microsecond=0)


def _end(buckets: Sequence[Bucket], now: datetime) -> datetime:
    """Of the last minute that counts: the one of `now` if it has a verdict, else the one before."""
    minute = now.replace(second=0, microsecond=0)
    is_judged = any(each.start == minute and _is_evaluated(each) for each in buckets[-2:])
    return minute + MINUTE if is_judged else minute


class _Window:
    """What happened from `begin` on; a row that is cut counts by the part of it that is inside."""

    def __init__(self, buckets: Sequence[Bucket], begin: datetime, end: datetime) -> None:
        inside = buckets[bisect_left(buckets, begin, key=_start) :]
        cut = buckets[bisect_left(buckets, begin - HOUR, key=_start) : len(buckets) - len(inside)]
        self.good_events = sum(each.good for each in inside) + _partly(cut, begin, "good")
        self.bad_events = sum(each.bad for each in inside) + _partly(cut, begin, "bad")
        self.fresh = sum(each.fresh for each in inside) + _partly(cut, begin, "fresh")
        self.incomplete = sum(each.incomplete for each in inside) + _partly(cut, begin, "incomplete")
        first = max(begin, buckets[0].start) if buckets else end
        self.minutes = max((end - first) / MINUTE, 0.0) - self.incomplete

    @property
    def bad_minutes(self) -> float:
        return max(self.minutes - self.fresh, 0.0)


def _start(bucket: Bucket) -> datetime:
    return bucket.start


def _partly(cut: Sequence[Bucket], begin: datetime, name: str) -> float:
    """The sum over rows that begin before `begin`, each by the share of its minutes that is not."""
    parts = [max((each.end - begin) / (each.end - each.start), 0.0) for each in cut]
    return sum(float(getattr(each, name)) * part for each, part in zip(cut, parts, strict=True))


def _is_evaluated(bucket: Bucket) -> bool:
    return bucket.fresh + bucket.stale + bucket.incomplete + bucket.unknown > 0


def _event_rate(window: _Window, overdue: int, objective: float) -> float:
    bad = window.bad_events + overdue
    events = window.good_events + bad
    return bad / events / (1 - objective) if events else 0.0


def _time_status(slo: Slo, whole: _Window, burning: Mapping[str, _Window]) -> TimeStatus:
    allowed_share = 1 - slo.time_objective
    allowed = allowed_share * (timedelta(days=slo.window_days) / MINUTE)
    minutes, bad = round(whole.minutes), round(whole.bad_minutes)
    return TimeStatus(
        objective=slo.time_objective,
        sli=1 - bad / minutes if minutes else None,
        budget_remaining_ratio=1 - bad / allowed,
        burn_rates={
            name: window.bad_minutes / (allowed_share * (BURN_WINDOWS[name] / MINUTE))
            for name, window in burning.items()
        },
        bad_minutes=bad,
        minutes=minutes,
    )


def _alerts(events: Mapping[str, float], time: Mapping[str, float]) -> list[str]:
    return [
        f"{kind}:{alert.name}"
        for alert in BURN_ALERTS
        for kind, rates in (("events", events), ("time", time))
        if alert.fires(rates)
    ]
