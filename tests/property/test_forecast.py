"""The forecast against a simulation of the queue: text by text, by the order of `claim`, with seeded Poisson arrivals.

In overload the moment of the first late change agrees within a quarter, or 5 s; below full load none is foretold.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.forecast import QueuedCollection, QueueReading
from schemas.freshness import CANARY
from schemas.sink import LATE_SHARE
from streams.freshness.forecast import HORIZON_SECONDS, Forecast, forecast_of, forecast_sentences

SHARE = 0.25


def simulated(reading: QueueReading, seconds: float, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """First late change, and when all is done that waited at first, by collection; one server, text after text."""
    chance = random.Random(seed)
    rate = reading.workers * (reading.texts_per_second or 0.0)
    coming = sorted(_arrivals(reading.collections, seconds, chance))
    timely = [
        (at, each.name, True) for each in reading.collections for at, n in each.waiting for _ in range(n)
    ]
    late = [(0.0, each.name, True) for each in reading.collections for _ in range(each.late)]
    backfill = [each.name for each in reading.collections for _ in range(each.backfill)]
    heapq.heapify(timely)
    missed = {each.name: 0.0 for each in reading.collections if each.late}
    done: dict[str, float] = {}
    now, taken = 0.0, 0
    while now < seconds:
        while taken < len(coming) and coming[taken][0] <= now:
            heapq.heappush(timely, (*coming[taken][1:], False))
            taken += 1
        while timely and timely[0][0] <= now:
            missed.setdefault(timely[0][1], timely[0][0])
            heapq.heappush(late, heapq.heappop(timely))
        live = bool(timely or late)
        if not live and not backfill:
            if taken == len(coming):
                break
            now = coming[taken][0]
            continue
        now += 1 / rate
        if backfill and (not live or chance.random() < SHARE):
            done[backfill.pop(0)] = now
            continue
        _, name, first = heapq.heappop(
            late if late and (not timely or chance.random() < LATE_SHARE) else timely
        )
        if first:
            done[name] = max(now, done.get(name, 0.0))
    return missed, done


def _arrivals(
    collections: Sequence[QueuedCollection], seconds: float, chance: random.Random
) -> list[tuple[float, float, str]]:
    made = []
    for each in collections:
        at = 0.0
        while (
            each.arrivals_per_second > 0
            and (at := at + chance.expovariate(each.arrivals_per_second)) < seconds
        ):
            made.append((at, at + each.threshold_seconds, each.name))
    return made


def queue(*collections: QueuedCollection, rate: float = 20.0, workers: int = 2) -> QueueReading:
    """`rate` texts a second, of all workers."""
    return QueueReading(collections, 0, workers, rate / max(workers, 1))


def of(reading: QueueReading) -> Mapping[str, Forecast]:
    return forecast_of(reading, backfill_share=SHARE)


TIGHT = QueuedCollection("tight", 15, arrivals_per_second=2)
SLACK = QueuedCollection("slack", 300, arrivals_per_second=2)
OVERLOADED = {
    "one collection at 120 %": queue(QueuedCollection("content", 30, arrivals_per_second=24)),
    "two at 80 % each": queue(
        replace(TIGHT, arrivals_per_second=16), QueuedCollection("content", 60, arrivals_per_second=16)
    ),
    "15 s beside 300 s, both at 75 %": queue(
        replace(TIGHT, arrivals_per_second=15), replace(SLACK, arrivals_per_second=15)
    ),
    "a backlog and 150 %": queue(
        QueuedCollection("content", 30, 0, [(n, 10) for n in range(10, 30)], arrivals_per_second=30)
    ),
    "90 % beside a first load": queue(
        QueuedCollection("content", 30, backfill=50_000, arrivals_per_second=18), rate=20
    ),
    "a burst in the slack one": queue(TIGHT, replace(SLACK, waiting=[(295.0, 10_000)])),
    "what is late takes its share": queue(
        QueuedCollection("content", 30, late=20_000, arrivals_per_second=9),
        replace(TIGHT, arrivals_per_second=9),
    ),
    "three": queue(
        replace(TIGHT, arrivals_per_second=8),
        QueuedCollection("content", 60, arrivals_per_second=8),
        replace(SLACK, arrivals_per_second=12),
    ),
}


@pytest.mark.parametrize("name", OVERLOADED)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_first_late_change_is_foretold(name: str, seed: int) -> None:
    reading = OVERLOADED[name]
    missed, _ = simulated(reading, 900, seed)
    foretold = {
        each: found.missed_in_seconds
        for each, found in of(reading).items()
        if found.missed_in_seconds is not None
    }
    assert foretold.keys() == missed.keys()
    for each, seconds in foretold.items():
        assert seconds == pytest.approx(missed[each], rel=0.25, abs=5)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "reading",
    [
        queue(replace(TIGHT, arrivals_per_second=7), replace(SLACK, arrivals_per_second=7)),
        queue(QueuedCollection("content", 30, 0, [(n, 3) for n in range(1, 30)], arrivals_per_second=14)),
        queue(TIGHT, replace(SLACK, waiting=[(295.0, 3000)], arrivals_per_second=5)),
        queue(QueuedCollection("content", 30, backfill=5000, arrivals_per_second=10)),
    ],
)
def test_nothing_is_foretold_where_there_is_capacity(reading: QueueReading, seed: int) -> None:
    assert simulated(reading, 900, seed)[0] == {}
    found = of(reading)
    assert [each.missed_in_seconds for each in found.values()] == [None] * len(found)
    assert forecast_sentences(found) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "reading",
    [
        queue(QueuedCollection("content", 30, late=2000, arrivals_per_second=10)),
        queue(TIGHT, replace(SLACK, waiting=[(n, 20) for n in range(1, 300)])),
        queue(QueuedCollection("content", 30, 0, [(29.0, 1200)], arrivals_per_second=4), TIGHT),
        queue(QueuedCollection("content", 30, backfill=6000, arrivals_per_second=8)),
        queue(QueuedCollection("content", 30, late=800, arrivals_per_second=25)),
    ],
)
def test_the_eta_is_when_all_that_waits_now_is_searchable(reading: QueueReading, seed: int) -> None:
    _, done = simulated(reading, 1500, seed)
    for name, found in of(reading).items():
        assert found.eta_seconds == pytest.approx(done.get(name, 0.0), rel=0.25, abs=5)


def test_what_is_late_already_is_missed_now() -> None:
    found = of(queue(QueuedCollection("content", 30, late=1, arrivals_per_second=1), TIGHT))
    assert found["content"].missed_in_seconds == 0
    assert found["tight"].missed_in_seconds is None


def test_without_a_worker_the_first_deadline_is_missed() -> None:
    reading = queue(replace(TIGHT, waiting=[(4.0, 1), (9.0, 2)]), SLACK, rate=0, workers=0)
    found = of(replace(reading, texts_per_second=None))
    assert (found["tight"].missed_in_seconds, found["slack"].missed_in_seconds) == (4, 300)
    assert (found["tight"].eta_seconds, found["slack"].eta_seconds) == (None, 0)
    assert found["tight"].sentence == (
        "tight will miss its 15 s threshold in 4 s: no worker runs; run `upwell worker --processes 2`"
    )


def test_without_a_rate_it_is_not_known() -> None:
    reading = replace(queue(replace(TIGHT, waiting=[(9.0, 2)]), SLACK), texts_per_second=None)
    found = of(reading)
    assert [(each.known, each.missed_in_seconds) for each in found.values()] == [(False, None)] * 2
    assert (found["tight"].eta_seconds, found["slack"].eta_seconds) == (None, 0)
    assert "not known" in found["tight"].sentence


def test_the_sentence_says_why_and_what_to_do() -> None:
    reading = queue(QueuedCollection("content", 30, arrivals_per_second=20), rate=12, workers=2)
    (found,) = of(reading).values()
    assert found.missed_in_seconds == pytest.approx(75)
    assert found.sentence == (
        "content will miss its 30 s threshold in 75 s: 20.0 texts a second arrive in all, 12.0 can be embedded; "
        "run 2 more workers, a core each"
    )
    with_them = replace(reading, workers=reading.workers + found.workers_wanted)
    assert of(with_them)["content"].missed_in_seconds is None


def test_a_burst_that_is_made_up_for_needs_no_more_workers() -> None:
    (found,) = of(queue(QueuedCollection("content", 30, late=600, arrivals_per_second=8))).values()
    assert found.sentence == (
        "content misses its 30 s threshold now: 8.0 texts a second arrive in all, 20.0 can be embedded, and the "
        "600 texts that wait take 50 s; it is made up for without more workers"
    )


def test_more_workers_hold_it_beside_a_first_load_too() -> None:
    reading = OVERLOADED["90 % beside a first load"]
    wanted = of(reading)["content"].workers_wanted
    assert wanted > 0
    assert of(replace(reading, workers=2 + wanted))["content"].missed_in_seconds is None


def test_nothing_is_foretold_beyond_the_horizon() -> None:
    reading = queue(QueuedCollection("content", 30, backfill=9, arrivals_per_second=20.1))
    assert forecast_of(reading, backfill_share=0.0)["content"].missed_in_seconds is None


def test_the_canary_takes_its_part_and_is_not_foretold() -> None:
    canary = QueuedCollection(CANARY, 30, arrivals_per_second=12)
    reading = queue(QueuedCollection("content", 30, arrivals_per_second=12), canary)
    assert list(of(reading)) == ["content"]
    assert of(reading)["content"].missed_in_seconds is not None


def test_the_soonest_is_said_first() -> None:
    reading = queue(replace(SLACK, arrivals_per_second=15, waiting=[(200.0, 1)]), replace(TIGHT, late=3))
    said = forecast_sentences(of(replace(reading, texts_per_second=6)))
    assert [line.split()[0] for line in said] == ["tight", "slack"]


rates = st.floats(0, 200)
texts = st.integers(0, 5000)


@st.composite
def collections(draw: st.DrawFn) -> list[QueuedCollection]:
    made = []
    for number in range(draw(st.integers(1, 4))):
        threshold = draw(st.sampled_from([15.0, 30.0, 60.0, 300.0]))
        waiting = draw(st.lists(st.tuples(st.floats(0, threshold), st.integers(1, 2000)), max_size=5))
        made.append(
            QueuedCollection(f"c{number}", threshold, draw(texts), sorted(waiting), draw(texts), draw(rates))
        )
    return made


readings = st.builds(
    QueueReading, collections(), texts, st.integers(0, 8), st.one_of(st.none(), st.floats(0, 100))
)


@example(QueueReading([QueuedCollection("c0", 15.0, 0, [(0.0, 1)], 0, 0.0)], 1, 0, 1.0), 1 - 2**-53)
@given(readings, st.floats(0, 1))
def test_every_number_is_one(reading: QueueReading, share: float) -> None:
    for found in forecast_of(reading, backfill_share=share).values():
        for number in (found.eta_seconds, found.missed_in_seconds):
            assert number is None or (math.isfinite(number) and number >= 0)
        assert found.missed_in_seconds is None or found.missed_in_seconds <= HORIZON_SECONDS
        assert 0 <= found.workers_wanted < 10**9
        assert "nan" not in found.sentence
        assert "inf" not in found.sentence


@given(readings, st.integers(0, 3), st.floats(0, 100))
def test_more_arrivals_are_never_missed_later(reading: QueueReading, which: int, more: float) -> None:
    chosen = which % len(reading.collections)
    busier = [
        replace(each, arrivals_per_second=each.arrivals_per_second + (more if number == chosen else 0))
        for number, each in enumerate(reading.collections)
    ]
    before, after = of(reading), of(replace(reading, collections=busier))
    for name, found in before.items():
        later = after[name].missed_in_seconds
        if found.missed_in_seconds is not None:
            assert later is not None
            assert later <= found.missed_in_seconds + 0.01
        if found.eta_seconds is None and found.known:
            assert after[name].eta_seconds is None
