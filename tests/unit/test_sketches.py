"""Quantiles of delays: 1 % accurate, mergeable, and whole after their way through JSON; and what is measured."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.change import Change, Outcome, Version
from schemas.freshness import SlowChange
from schemas.sink import Claim, IntakePlan, Lane
from streams.freshness.measures import HELD, SLOWEST, Measures
from streams.freshness.sketches import RELATIVE_ACCURACY, freeze, merged, new_sketch, summary, thaw
from tests.unit.test_decide import C, D, R, Sink, T, event, hour

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def sketch_of(values: Sequence[float]) -> Any:
    sketch = new_sketch()
    for value in values:
        sketch.add(value)
    return sketch


def through_json(sketch: Any) -> dict[str, Any]:
    frozen: dict[str, Any] = json.loads(json.dumps(freeze(sketch)))
    return frozen


def test_it_survives_json() -> None:
    sketch = sketch_of([0.0, 0.0, 0.001, 0.07, 1.5, 3600.0])
    again = thaw(through_json(sketch))
    assert summary(again) == summary(sketch)
    assert again.count == 6
    assert through_json(again) == through_json(sketch)


def test_an_empty_one_too() -> None:
    empty = thaw(through_json(new_sketch()))
    assert summary(empty) == {"p50": None, "p95": None, "p99": None, "max": None, "mean": None, "count": 0}
    assert summary(merged([])) == summary(empty)


def test_quantiles_are_accurate_and_the_maximum_exact() -> None:
    source = random.Random(7)
    values = sorted(source.lognormvariate(0, 2) for _ in range(5000))
    found = summary(sketch_of(values))
    for name, quantile in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        exact = values[int(quantile * (len(values) - 1))]
        assert found[name] == pytest.approx(exact, rel=2 * RELATIVE_ACCURACY)
    assert found["max"] == values[-1]
    assert found["mean"] == pytest.approx(sum(values) / len(values))


def test_minutes_merge_to_what_one_sketch_of_all_would_be() -> None:
    source = random.Random(8)
    minutes = [[source.expovariate(1) for _ in range(number)] for number in (0, 3, 500)]
    total = merged([through_json(sketch_of(minute)) for minute in minutes])
    whole = sketch_of([value for minute in minutes for value in minute])
    assert summary(total) == pytest.approx(summary(whole))


def test_a_merged_sketch_goes_on_counting() -> None:
    total = merged([through_json(sketch_of([1.0, 2.0]))])
    total.add(9.0, 3)
    assert summary(total)["count"] == 5
    assert summary(total)["max"] == 9.0


# --- what is measured --------------------------------------------------------------------------------------------


def counters(measures: Measures) -> dict[str, int]:
    return {name: number for (_, _, name), number in measures.drain().counters.items()}


def stages(measures: Measures) -> dict[str, dict[str, float | None]]:
    return {name: summary(thaw(frozen)) for (_, _, name), frozen in measures.drain().sketches.items()}


def taken(measures: Measures, *events: Change, sink: Sink | None = None) -> IntakePlan:
    plan = (sink or Sink()).take(*events)
    measures.taken_in("content", events, plan, NOON)
    return plan


def at_kafka(change: Change, kafka_at: datetime) -> Change:
    return replace(change, kafka_at=kafka_at)


def test_a_change_is_measured_from_commit_to_taken_in() -> None:
    measures = Measures()
    taken(measures, at_kafka(event(C, "k", "x", offset=0, lsn=1, hours=1), hour(1) + timedelta(seconds=2)))
    found = stages(measures)
    assert found["capture"]["max"] == 2
    assert found["queue"]["max"] == (NOON - hour(1)).total_seconds() - 2
    assert "total" not in found


def test_a_delete_and_a_truncate_are_searchable_at_once() -> None:
    measures = Measures()
    taken(measures, event(D, "k", offset=0, lsn=1, hours=1.5))
    taken(measures, event(T, None, offset=0, lsn=1, hours=1))
    total = stages(measures)["total"]
    assert (total["count"], total["max"]) == (2, 3600)


def test_snapshot_rows_have_no_delay() -> None:
    measures = Measures()
    plan = taken(measures, at_kafka(event(R, "k", "x", offset=0, lsn=1), hour(1)))
    assert plan.outcomes == {Outcome.APPLIED: 1}
    assert stages(measures) == {}


def test_clocks_that_disagree_are_clamped_and_counted() -> None:
    measures = Measures()
    taken(measures, at_kafka(event(C, "k", "x", offset=0, lsn=1, hours=1), hour(0.5)))
    drained = measures.drain()
    assert {name: number for (_, _, name), number in drained.counters.items()}["clock_negative"] == 1
    assert summary(thaw(drained.sketches["content", NOON, "capture"]))["max"] == 0


def claim(since: datetime | None, changes: int = 1) -> Claim:
    taken_in_at, claimed_at = NOON - timedelta(seconds=8), NOON - timedelta(seconds=3)
    return Claim(
        "content", 1, "k", Version(1, 1), "t", Lane.LIVE, {}, 0, since, taken_in_at, claimed_at, changes
    )


def test_a_claim_is_measured_by_stage_and_coalesced_changes_count_each() -> None:
    measures = Measures()
    measures.searchable(claim(NOON - timedelta(seconds=10), changes=4), NOON, 2.0)
    found = stages(measures)
    worst = {name: (stage["max"], stage["count"]) for name, stage in found.items()}
    assert worst == {"wait": (5, 1), "embed": (2, 1), "write": (1, 1), "total": (10, 4)}


def test_backfill_is_counted_and_has_no_delay() -> None:
    measures = Measures()
    measures.searchable(claim(None), NOON, 2.0)
    drained = measures.drain()
    assert drained.sketches == {}
    assert list(drained.counters.values()) == [1]


def test_a_drain_holds_only_what_is_new() -> None:
    measures = Measures()
    measures.count("content", NOON, "n")
    measures.delay("content", NOON, "total", 1)
    assert (len(measures.drain().counters), len(measures.drain().sketches)) == (1, 0)


def test_what_could_not_be_written_is_written_next_time() -> None:
    measures = Measures()
    measures.count("content", NOON, "n", 2)
    measures.delay("content", NOON, "total", 1)
    failed = measures.drain()
    measures.count("content", NOON, "n", 3)
    measures.give_back(failed)
    again = measures.drain()
    assert list(again.counters.values()) == [5]
    assert again.sketches == failed.sketches


def test_a_late_measurement_adds_to_its_minute_and_replaces_nothing() -> None:
    """A sketch replaces what the sink has: one that was forgotten too early would lose its minute."""
    measures = Measures()
    before = NOON - timedelta(seconds=1)
    measures.delay("content", before, "total", 1)
    measures.delay("content", NOON, "total", 2)
    measures.drain()
    measures.delay("content", before, "total", 3)
    (late,) = measures.drain().sketches.values()
    assert summary(thaw(late))["count"] == 2


def test_old_sketches_are_forgotten() -> None:
    measures = Measures()
    for minute in range(60):
        measures.delay("content", NOON + timedelta(minutes=minute), "total", 1)
        measures.drain()
    assert len(measures._sketches) <= HELD / timedelta(minutes=1) + 1


# --- the slowest changes -----------------------------------------------------------------------------------------


def slow(measures: Measures) -> list[SlowChange]:
    return [change for changes in measures.drain().slow.values() for change in changes]


def change_of(seconds: float, key: str = "k", at: datetime = NOON) -> SlowChange:
    return SlowChange("content", key, seconds, at - timedelta(seconds=seconds), at, {})


def test_the_slowest_of_a_minute_are_kept_the_slowest_first() -> None:
    measures = Measures()
    for seconds in random.Random(3).sample(range(100), 100):
        measures.slow(change_of(seconds, f"k{seconds}"))
    assert [change.seconds for change in slow(measures)] == list(range(99, 99 - SLOWEST, -1))


def test_each_minute_and_collection_has_its_own() -> None:
    measures = Measures()
    for number in range(SLOWEST):
        measures.slow(change_of(100 + number))
    measures.slow(change_of(1, at=NOON + timedelta(minutes=1)))
    measures.slow(replace(change_of(2), collection="customers"))
    assert len(slow(measures)) == SLOWEST + 2


def test_what_is_not_among_the_slowest_writes_nothing() -> None:
    measures = Measures()
    for number in range(SLOWEST):
        measures.slow(change_of(100 + number))
    assert len(slow(measures)) == SLOWEST
    measures.slow(change_of(1))
    assert measures.drain().slow == {}
    measures.slow(change_of(500))
    assert [change.seconds for change in slow(measures)] == [500, *range(109, 100, -1)]


def test_the_slowest_of_a_failed_write_come_again_also_of_a_minute_long_past() -> None:
    measures = Measures()
    measures.slow(change_of(7))
    failed = measures.drain()
    for minute in (0, 10):
        measures.delay("content", NOON + timedelta(minutes=minute), "total", 1)
    measures.drain()
    measures.give_back(failed)
    measures.slow(change_of(8))
    assert [change.seconds for change in slow(measures)] == [8, 7]
    assert measures._slow == {}


def test_a_delete_knows_capture_and_queue_and_an_embedded_change_the_rest() -> None:
    measures = Measures()
    taken(measures, at_kafka(event(D, "k", offset=0, lsn=1, hours=1.5), hour(1.5) + timedelta(seconds=2)))
    measures.searchable(claim(NOON - timedelta(seconds=10), changes=4), NOON, 2.0)
    deleted, embedded = slow(measures)
    assert (deleted.key, deleted.seconds, deleted.committed_at) == ("k", 1800, hour(1.5))
    assert deleted.stages == {"capture": 2, "queue": 1798}
    assert embedded.seconds == 10
    assert list(embedded.stages) == ["capture_and_queue", "wait", "embed", "write"]
    assert sum(embedded.stages.values()) == pytest.approx(10)


def test_a_first_load_is_never_slow_and_clocks_make_no_negative_stage() -> None:
    measures = Measures()
    taken(measures, at_kafka(event(R, "k", "x", offset=0, lsn=1), hour(1)))
    measures.searchable(claim(None), NOON, 2.0)
    assert slow(measures) == []
    measures.searchable(claim(NOON + timedelta(seconds=5)), NOON, 2.0)
    (early,) = slow(measures)
    assert early.seconds == 0
    assert min(early.stages.values()) == 0


# --- what is judged by the SLO -----------------------------------------------------------------------------------


def judged(measures: Measures) -> dict[datetime, tuple[int, int]]:
    return {minute: counts for (_, minute), counts in measures.drain().judged.items()}


def test_a_change_is_good_up_to_the_threshold_and_counts_as_often_as_it_was_coalesced() -> None:
    measures = Measures({"content": 10.0})
    measures.searchable(claim(NOON - timedelta(seconds=10), changes=4), NOON, 2.0)
    measures.searchable(claim(NOON - timedelta(seconds=10, microseconds=1), changes=3), NOON, 2.0)
    measures.searchable(claim(NOON - timedelta(seconds=70)), NOON + timedelta(seconds=61), 2.0)
    assert judged(measures) == {NOON: (4, 3), NOON + timedelta(minutes=1): (0, 1)}


def test_a_delete_and_a_truncate_are_judged_when_they_are_taken_in() -> None:
    measures = Measures({"content": 3000.0})
    taken(measures, event(D, "k", offset=0, lsn=1, hours=1.5))
    taken(measures, event(T, None, offset=0, lsn=1, hours=1))
    assert judged(measures) == {NOON: (1, 1)}


def test_backfill_and_snapshot_rows_are_not_judged() -> None:
    measures = Measures({"content": 1.0})
    measures.searchable(claim(None), NOON, 2.0)
    taken(measures, at_kafka(event(R, "k", "x", offset=0, lsn=1), hour(1)))
    assert judged(measures) == {}


def test_a_collection_without_a_threshold_is_not_judged() -> None:
    measures = Measures({"customers": 1.0})
    measures.searchable(claim(NOON), NOON, 2.0)
    assert judged(measures) == {}


def test_what_was_judged_is_given_back_once() -> None:
    measures = Measures({"content": 10.0})
    measures.searchable(claim(NOON, changes=2), NOON, 2.0)
    failed = measures.drain()
    assert not failed.is_empty
    measures.searchable(claim(NOON - timedelta(seconds=11)), NOON, 2.0)
    measures.give_back(failed)
    assert judged(measures) == {NOON: (2, 1)}
    assert measures.drain().is_empty
