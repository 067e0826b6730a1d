"""Rounds, one rule at a time; `tests/property/test_rounds.py` has them all against an oracle."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from schemas.change import TopicPartition
from streams.freshness.rounds import Ends, OpenLetter, Reflected, Rounds, behind, lost

AT = datetime(2026, 1, 1, tzinfo=UTC)
P0, P1 = TopicPartition("t", 0), TopicPartition("t", 1)
ENDS = Ends({P0: 10, P1: 5, TopicPartition("u", 0): 7}, {P0: 0, P1: 5, TopicPartition("u", 0): 0})


def settled(*numbers: int) -> Rounds:
    """Rounds that have only to be taken in, a second apart."""
    rounds = Rounds()
    for number in numbers:
        rounds.begin(number, AT + timedelta(seconds=number), float(number))
        rounds.seen(number, 100 * number)
        rounds.stored(100 * number + 1)
        for each in rounds.unread():
            each.ends = ENDS
    return rounds


TAKEN_IN = Reflected("t", {0: 10})


def test_a_partition_without_a_position_begins_at_its_log_start() -> None:
    """H36: an emptied partition is no reason to wait."""
    assert behind(ENDS, TAKEN_IN) == 0
    assert behind(ENDS, Reflected("t", {0: 4})) == 6
    assert settled(1).complete("t", TAKEN_IN, 1) is not None
    assert settled(1).complete("t", Reflected("t", {0: 9}), 1) is None


def test_a_topic_that_was_not_asked_for_completes_nothing() -> None:
    assert settled(1).complete("v", Reflected("v", {}), 1) is None


def test_a_round_needs_its_own_canary_to_be_found() -> None:
    """H33. Else a model that is gone looks fresh for as long as nothing is written."""
    rounds = settled(1, 2, 3)
    found = rounds.complete("t", TAKEN_IN, 2)
    assert found is not None
    assert found[0].number == 2
    assert found[1] == AT + timedelta(seconds=1)
    assert rounds.complete("t", TAKEN_IN, 0) is None


def test_a_canarys_event_is_none_of_a_later_round() -> None:
    rounds = Rounds()
    rounds.begin(1, AT, 0.0)
    rounds.begin(2, AT, 5.0)
    rounds.seen(1, 100)
    rounds.stored(1000)
    assert [each.step for each in rounds.waiting] == ["settled", "committed"]
    rounds.seen(3, 5000)  # somebody else's, and ours was not read: it is before it
    assert [each.step for each in rounds.waiting] == ["settled", "in Kafka"]


def test_an_undated_dead_letter_holds_the_watermark_where_it_was() -> None:
    """H35: at the last round whose end offset is at or below its own offset."""
    older = Reflected("t", {0: 12}, letters=[OpenLetter("t", 0, 9)])
    newer = Reflected("t", {0: 12}, letters=[OpenLetter("t", 0, 10)])
    embed = Reflected("t", {0: 12}, letters=[OpenLetter("", 0, 3)])
    assert settled(1).complete("t", older, 1) is None
    assert settled(1).complete("t", newer, 1) is not None
    assert settled(1).complete("t", embed, 1) is None


def test_a_finished_round_claims_no_more_than_the_oldest_that_waits() -> None:
    """H38."""
    waits = AT - timedelta(seconds=30)
    found = settled(1).complete("t", Reflected("t", {0: 10}, waits), 1)
    assert found is not None
    assert found[1] == waits - timedelta(microseconds=1)


def test_rounds_that_are_done_for_all_are_forgotten() -> None:
    rounds = settled(1, 2)
    rounds.begin(3, AT, 9.0)
    rounds.complete("t", TAKEN_IN, 2)
    rounds.forget(["t", "u"])
    assert len(rounds.waiting) == 3, "u is not done"
    rounds.complete("u", Reflected("u", {0: 7}), 2)
    rounds.forget(["t", "u"])
    assert [each.number for each in rounds.waiting] == [3]


def test_a_slow_line_finishes_its_oldest_round() -> None:
    """A pipeline that is ten minutes behind would otherwise never finish one."""
    rounds = Rounds(limit=8)
    for number in range(1, 200):
        rounds.begin(number, AT, float(number))
        assert len(rounds.waiting) <= 8
    assert rounds.waiting[0].number == 1
    assert rounds.waiting[-1].number == 199


def test_a_source_that_went_back_begins_anew() -> None:
    rounds = settled(7, 8)
    rounds.begin(3, AT, 9.0)
    assert [each.number for each in rounds.waiting] == [3]


def test_a_log_start_above_the_position_is_loss() -> None:
    """H23."""
    ends = Ends({P0: 10}, {P0: 6})
    assert lost(ends, Reflected("t", {0: 6})) == ""
    assert lost(ends, Reflected("t", {})) == ""
    assert lost(ends, Reflected("t", {0: 5})) == "t/0 begins at 6, taken in up to 5"


def test_h30_end_offsets_are_read_only_after_the_connector_has_stored_a_commit_past_the_canary() -> None:
    """H30, H31: a row before the canary may still be on its way to Kafka; a row carries the commit before its own."""
    rounds = Rounds()
    rounds.begin(1, AT, 0.0)
    rounds.stored(10_000)
    assert not rounds.unread(), "stored before its event was read: of an earlier life of the log, or a guess"
    rounds.seen(1, 100)
    rounds.stored(100)
    assert not rounds.unread()
    assert rounds.complete("t", TAKEN_IN, 1) is None
    rounds.stored(101)
    assert [each.number for each in rounds.unread()] == [1]
