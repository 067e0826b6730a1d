"""Which SLO will be missed, and when: the queue before the model as a fluid. Pure.

Texts are served as `claim` does (ADR 0012): the earliest deadline first, late ones behind with a share, backfill with
its own. By the deadline of any text all that is due until then must be embedded, so a deadline is missed where

    texts due until then  >  texts that can be embedded until then.

A fluid knows no chance: near full load (0.9 to 1.1) the moment is a guess, and so is anything beyond the horizon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from schemas.forecast import QueuedCollection, QueueReading
from schemas.freshness import CANARY
from schemas.sink import LATE_SHARE

#: Rates of the last minutes say little about what comes after this.
HORIZON_SECONDS: Final = 3600.0
#: More workers change nothing before this: they must start and load the model.
START_SECONDS: Final = 10.0
#: Fewer texts than this are rounding.
ALMOST_NONE: Final = 1e-6
LEAST_TURN_SECONDS: Final = 1e-3
#: More than these is no advice: where first loads have nearly all of the embedding, no number of workers helps.
MOST_WORKERS: Final = 1_000_000
#: A worker that embeds less than this a second is not one to count with.
LEAST_RATE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Forecast:
    """What will become of one collection at the rates of the last minutes.

    `eta_seconds`: until all that waits now is searchable; None if that is not known, or never at this rate.
    `missed_in_seconds`: until the first change is late, 0 if one is; None if none will be within `HORIZON_SECONDS`, or
    if it is not known (`known` says which). `workers_wanted`: how many more would hold all thresholds.
    """

    collection: str
    threshold_seconds: float
    eta_seconds: float | None
    missed_in_seconds: float | None
    known: bool
    workers_wanted: int
    sentence: str


@dataclass(frozen=True, slots=True)
class _Supply:
    """Texts a second: of all workers, and what the live lane has of it while backfill waits, for `backfill_seconds`."""

    total: float
    share: float
    backfill_seconds: float

    def live(self, at: float) -> float:
        return self.total * (1 - self.share) if at < self.backfill_seconds else self.total


def forecast_of(reading: QueueReading, *, backfill_share: float) -> Mapping[str, Forecast]:
    """The forecast of every collection but the canary's, which only takes its part of the workers' time.

    `backfill_share`: the workers' setting. A reading without a rate of service gives forecasts that are not `known`,
    unless no worker runs: then nothing is embedded.
    """
    rate = 0.0 if reading.workers == 0 else reading.texts_per_second
    if rate is None:
        found = {each.name: _unknown(each) for each in reading.collections}
    else:
        supply = _supply(reading, rate * reading.workers, backfill_share)
        missed = first_misses(reading, supply)
        wanted = _workers_wanted(reading, supply) if missed else 0
        found = {
            each.name: _forecast(each, reading, supply, missed.get(each.name), wanted)
            for each in reading.collections
        }
    return {name: each for name, each in found.items() if name != CANARY}


def forecast_sentences(forecasts: Mapping[str, Forecast], *, all_of_them: bool = False) -> list[str]:
    """What a report says: of each collection that misses its threshold or will, the soonest first; else of none."""
    worst = sorted(
        forecasts.values(),
        key=lambda each: math.inf if each.missed_in_seconds is None else each.missed_in_seconds,
    )
    return [each.sentence for each in worst if all_of_them or each.missed_in_seconds is not None]


def _supply(reading: QueueReading, total: float, backfill_share: float) -> _Supply:
    backfill = reading.filling + sum(each.backfill for each in reading.collections)
    return _Supply(total, backfill_share, _quotient(backfill, total * backfill_share))


def first_misses(reading: QueueReading, supply: _Supply) -> dict[str, float]:
    """Seconds until the first late change, by collection; those that have none within the horizon are left out."""
    masses: dict[float, list[tuple[str, int]]] = {}
    for each in reading.collections:
        for seconds, texts in each.waiting:
            masses.setdefault(max(seconds, 0.0), []).append((each.name, texts))
    starts = {each.threshold_seconds for each in reading.collections}
    edges = sorted({*masses, *starts, supply.backfill_seconds, HORIZON_SECONDS})
    sweep = _Sweep(late=float(sum(each.late for each in reading.collections)))
    sweep.missed = {each.name: 0.0 for each in reading.collections if each.late}
    for edge in (edge for edge in edges if edge <= HORIZON_SECONDS):
        due = {
            each.name: each.arrivals_per_second
            for each in reading.collections
            if each.threshold_seconds <= sweep.at and each.arrivals_per_second > 0
        }
        sweep.along(edge, supply.live(sweep.at), due)
        for name, texts in masses.get(edge, ()):
            sweep.take(name, texts)
    return sweep.missed


@dataclass(slots=True)
class _Sweep:
    """Goes along the deadlines. `spare`: texts that could be embedded until `at` beyond what is due until then; where
    it ends what is due is late, and while any are `late` these take their share.
    """

    at: float = 0.0
    spare: float = 0.0
    late: float = 0.0
    missed: dict[str, float] = field(default_factory=dict)

    def along(self, edge: float, live: float, due: Mapping[str, float]) -> None:
        """To `edge` at constant rates. Each turn ends there, where the spare ends, or where the late are done."""
        arrivals = sum(due.values())
        while self.at < edge:
            net = live * (1 - LATE_SHARE if self.late > ALMOST_NONE else 1) - arrivals
            growth = 0.0
            if self.spare <= ALMOST_NONE and net < -ALMOST_NONE:
                for name in due:
                    self.missed.setdefault(name, self.at)
                self.late = max(self.late, 2 * ALMOST_NONE)
                growth, net = arrivals - live * (1 - LATE_SHARE), 0.0
            if self.late > ALMOST_NONE:
                growth -= live * LATE_SHARE
            lasts = edge - self.at
            if net < 0 < self.spare:
                lasts = min(lasts, self.spare / -net)
            if growth < 0 < self.late:
                lasts = min(lasts, self.late / -growth)
            lasts = min(max(lasts, LEAST_TURN_SECONDS), edge - self.at)
            self.spare = max(self.spare + net * lasts, 0.0)
            self.late = max(self.late + growth * lasts, 0.0)
            self.at = edge if lasts >= edge - self.at else self.at + lasts

    def take(self, name: str, texts: int) -> None:
        """What waits already and is due here."""
        self.spare -= texts
        if self.spare < -ALMOST_NONE:
            self.missed.setdefault(name, self.at)
        self.late, self.spare = self.late + max(-self.spare, 0.0), max(self.spare, 0.0)


def _forecast(
    each: QueuedCollection, reading: QueueReading, supply: _Supply, missed: float | None, wanted: int
) -> Forecast:
    eta = _eta(each, reading, supply)
    sentence = _sentence(each, reading, supply, eta=eta, missed=missed, wanted=wanted)
    return Forecast(each.name, each.threshold_seconds, eta, missed, True, wanted, sentence)


def _eta(each: QueuedCollection, reading: QueueReading, supply: _Supply) -> float | None:
    """The longest of the parts that the collection has; each waits for what is before it."""
    late = sum(other.late for other in reading.collections)
    timely = sum(texts for other in reading.collections for _, texts in other.waiting)
    arrivals = sum(other.arrivals_per_second for other in reading.collections)
    live = supply.live(0.0)
    parts = [0.0]
    if each.waiting:
        parts.append(_waiting_seconds(each, reading, live, late))
    if each.late:
        parts.append(_shared_seconds(late, timely, live, LATE_SHARE, arrivals))
    if each.backfill:
        backfill = reading.filling + sum(other.backfill for other in reading.collections)
        parts.append(_shared_seconds(backfill, timely + late, supply.total, supply.share, arrivals))
    longest = max(parts)
    return longest if math.isfinite(longest) else None


def _waiting_seconds(each: QueuedCollection, reading: QueueReading, live: float, late: int) -> float:
    """Until those are done that are timely now. What is left of them at the last deadline is late from then on."""
    rate = live * (1 - LATE_SHARE if late else 1)
    last = max(seconds for seconds, _ in each.waiting)
    in_order = _timely_seconds(last, reading, rate)
    if in_order <= last:
        return in_order
    left = (in_order - last) * rate + max(late - live * LATE_SHARE * last, 0.0)
    behind = sum(texts for other in reading.collections for at, texts in other.waiting if at > last)
    others = behind + sum(
        other.arrivals_per_second * min(last, other.threshold_seconds) for other in reading.collections
    )
    arrivals = sum(other.arrivals_per_second for other in reading.collections)
    return last + _shared_seconds(left, others, live, LATE_SHARE, arrivals)


def _timely_seconds(last: float, reading: QueueReading, rate: float) -> float:
    """Until all is done that is due until `last`, also of what comes meanwhile."""
    before = sum(texts for other in reading.collections for at, texts in other.waiting if at <= last)
    coming = sorted(
        (max(last - other.threshold_seconds, 0.0), other.arrivals_per_second) for other in reading.collections
    )
    at, left, arriving = 0.0, float(before), sum(arrivals for _, arrivals in coming)
    for until, arrivals in coming:
        if rate > arriving and at + left / (rate - arriving) <= until:
            return at + left / (rate - arriving)
        left += (arriving - rate) * (until - at)
        at, arriving = until, arriving - arrivals
    return at + _quotient(left, rate)


def _shared_seconds(texts: float, others: float, rate: float, share: float, arrivals: float) -> float:
    """Until `texts` are done that have `share` of `rate` while `others` are there, and later what arrivals leave."""
    others_seconds = _quotient(others, rate * (1 - share) - arrivals)
    with_others = _quotient(texts, rate * share)
    if with_others <= others_seconds:
        return with_others
    left = texts - rate * share * others_seconds
    return others_seconds + _quotient(left, max(rate * share, rate - arrivals))


def _quotient(texts: float, rate: float) -> float:
    if texts <= 0:
        return 0.0
    return texts / rate if rate > 0 else math.inf


def _workers_wanted(reading: QueueReading, supply: _Supply) -> int:
    """More workers that would hold every threshold, by what is due until each deadline that they can still help."""
    each_embeds = reading.texts_per_second or 0.0
    if each_embeds < LEAST_RATE:
        return 0 if reading.workers else 1
    collections = reading.collections
    edges = {seconds for each in collections for seconds, _ in each.waiting} | {HORIZON_SECONDS}
    needed = 0.0
    for edge in (edge for edge in edges if edge >= START_SECONDS):
        waiting = sum(texts for each in collections for at, texts in each.waiting if at <= edge)
        coming = sum(
            each.arrivals_per_second * max(edge - each.threshold_seconds, 0.0) for each in collections
        )
        needed = max(needed, (waiting + coming) / edge)
    share = supply.share if supply.backfill_seconds > 0 else 0.0
    wanted = _quotient(needed, 1 - share) / each_embeds
    if wanted > MOST_WORKERS:
        return 0
    return max(math.ceil(wanted - 0.01) - reading.workers, 0)


def _unknown(each: QueuedCollection) -> Forecast:
    eta = 0.0 if each.pending == 0 else None
    missed = 0.0 if each.late else None
    if each.late:
        said = f"misses its {each.threshold_seconds:g} s threshold now, {_texts(each.late)} late; "
        said += "nothing was embedded in the last hour: see the workers' log"
    elif each.pending:
        said = (
            f"how long {_texts(each.pending)} will wait is not known: nothing was embedded in the last hour"
        )
    else:
        said = "nothing waits; how fast texts are embedded is not known yet"
    joint = " " if each.late else ": "
    return Forecast(each.name, each.threshold_seconds, eta, missed, False, 0, f"{each.name}{joint}{said}")


def _sentence(
    each: QueuedCollection,
    reading: QueueReading,
    supply: _Supply,
    *,
    eta: float | None,
    missed: float | None,
    wanted: int,
) -> str:
    threshold = f"its {each.threshold_seconds:g} s threshold"
    arrivals = sum(other.arrivals_per_second for other in reading.collections)
    if missed is None:
        waits = f"{_texts(each.pending)} wait" if each.pending != 1 else "1 text waits"
        done = "" if not each.pending else ", for ever" if eta is None else f", the last for {_duration(eta)}"
        return f"{each.name} keeps {threshold}: {waits}{done}"
    when = "misses " + threshold + " now" if missed < 1 else f"will miss {threshold} in {_duration(missed)}"
    if reading.workers == 0:
        return f"{each.name} {when}: no worker runs; run `upwell worker --processes 2`"
    live = supply.live(0.0)
    why = f"{arrivals:.1f} texts a second arrive in all, {live:.1f} can be embedded"
    if live < supply.total:
        why += " beside a first load or a new generation"
    if arrivals < live and eta is not None:
        why += f", and the {_texts(each.pending)} that wait take {_duration(eta)}"
    more = f"run {wanted} more worker{'s' if wanted > 1 else ''}, a core each"
    return f"{each.name} {when}: {why}; {more if wanted else 'it is made up for without more workers'}"


def _texts(number: int) -> str:
    return "1 text" if number == 1 else f"{number:,} texts"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.0f} h"
