"""The promises of a store, held by the fake and by Postgres 18 and 16. H numbers: DESIGN's histories."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from connectors.postgres.store import PostgresStore
from schemas.change import Outcome, TopicPartition, Version
from schemas.errors import (
    Conflict,
    MigrationNeeded,
    PositionConflict,
    UnresolvedPlaceholder,
    UnusableVector,
    UpwellError,
)
from schemas.sink import Fence, IntakePlan, IntakeRequest, IntakeView, Lane, OffsetRange, WriteOutcome
from tests.contracts.sinks import PostgresSink, Sink
from tests.contracts.steps import (
    AT,
    change,
    claim,
    digest,
    document,
    embed,
    embed_all,
    take_in,
    undecodable,
    when,
)

WRITTEN, MOVED_ON = WriteOutcome.WRITTEN, WriteOutcome.MOVED_ON
DISCARDED, VANISHED = WriteOutcome.DISCARDED, WriteOutcome.VANISHED


async def test_a_change_becomes_a_record_a_pending_row_and_then_chunks(sink: Sink) -> None:
    clock = await take_in(sink.store, change(1, 0, "tea", since=when(10)), upto=1)
    assert abs(clock - datetime.now(UTC)) < timedelta(seconds=30)
    assert (await sink.pending("[1]")) == (Version(1, 0), "live", when(10), None, False, 0)
    (claimed,) = await claim(sink.store)
    assert claimed.version == Version(1, 0)
    assert claimed.row == {"id": 1, "title": "tea"}
    assert claimed.pending_since == when(10)
    assert await embed(sink.store, claimed) == [WRITTEN]
    assert await sink.chunks("[1]") == ["tea"]
    assert await sink.pending("[1]") is None
    assert await sink.actions() == [("applied", "[1]"), ("embedded", "[1]")]


async def test_an_unknown_collection_says_what_to_run(sink: Sink) -> None:
    with pytest.raises(MigrationNeeded, match="upwell migrate"):
        await sink.store.intake(IntakeRequest("nothing", {}, []), lambda view: IntakePlan())


# -- H13: a late embedder never writes what is gone


async def test_h13_deleted_while_it_was_encoded(sink: Sink) -> None:
    await take_in(sink.store, change(1, 5, "tea"))
    (claimed,) = await claim(sink.store)
    await take_in(sink.store, change(1, 6, None))
    assert await embed(sink.store, claimed) == [DISCARDED]
    assert await sink.chunks("[1]") == []
    assert await sink.alive() == []


async def test_h13_deleted_and_inserted_again(sink: Sink) -> None:
    await take_in(sink.store, change(1, 5, "tea"))
    (late,) = await claim(sink.store)
    await take_in(sink.store, change(1, 6, None))
    await take_in(sink.store, change(1, 7, "coffee"))
    assert await embed(sink.store, late) == [DISCARDED]
    assert await sink.chunks("[1]") == []
    await embed_all(sink.store)
    assert await sink.chunks("[1]") == ["coffee"]


async def test_h13_text_became_empty(sink: Sink) -> None:
    await take_in(sink.store, change(1, 5, "tea"))
    (late,) = await claim(sink.store)
    await take_in(sink.store, change(1, 6, ""))
    assert await embed(sink.store, late) == [DISCARDED]
    assert await sink.chunks("[1]") == []
    assert await sink.alive() == ["[1]"]


async def test_h13_two_embedders_after_an_expired_lease(sink: Sink) -> None:
    await take_in(sink.store, change(1, 5, "tea"))
    (late,) = await claim(sink.store, slot="w1")
    await sink.expire_leases()
    await take_in(sink.store, change(1, 6, "coffee"))
    (quick,) = await claim(sink.store, slot="w2")
    assert quick.token != late.token
    assert await embed(sink.store, quick) == [WRITTEN]
    assert await embed(sink.store, late) == [DISCARDED]
    assert await sink.chunks("[1]") == ["coffee"]


async def test_a_lease_that_holds_is_not_claimed_by_others(sink: Sink) -> None:
    await take_in(sink.store, change(1, 5, "tea"))
    assert len(await claim(sink.store, slot="w1")) == 1
    assert await claim(sink.store, slot="w2") == []
    assert await sink.store.release("w2") == 0
    assert await sink.store.release("w1") == 1
    assert len(await claim(sink.store, slot="w2")) == 1


# -- H16 and the reading of `unchanged`


async def test_h16_a_to_b_to_a_while_claimed(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "A"))
    await embed_all(sink.store)
    await take_in(sink.store, change(1, 2, "B"))
    (b,) = await claim(sink.store)
    await take_in(sink.store, change(1, 3, "A"))
    assert await embed(sink.store, b) == [MOVED_ON]
    await embed_all(sink.store)
    assert await sink.chunks("[1]") == ["A"]


async def test_metadata_alone_leaves_vectors_and_pending_alone(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "A"))
    await embed_all(sink.store)
    await take_in(sink.store, change(1, 2, "A", embed="keep", published=True))
    assert await sink.pending("[1]") is None
    assert await sink.chunks("[1]") == ["A"]
    assert ("unchanged", "[1]") not in await sink.actions()


# -- H17: kept and copied vectors


async def test_h17_a_copied_chunk_vanishes(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "tea"), change(2, 2, "other"))
    await embed_all(sink.store)
    await take_in(sink.store, change(2, 3, "tea", since=when(10)))
    (claimed,) = await claim(sink.store)
    await take_in(sink.store, change(1, 4, None))
    assert (await sink.store.write([document(claimed, "tea", kept=["tea"])]))[0] == [VANISHED]
    assert await sink.pending("[2]") == (Version(1, 3), "live", when(10), None, False, 0)
    assert await sink.chunks("[2]") == ["other"]
    await embed_all(sink.store)
    assert await sink.chunks("[2]") == ["tea"]


async def test_vectors_move_within_a_document_and_from_another(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "x"), change(2, 2, "y"))
    first, second = sorted(await claim(sink.store), key=lambda each: each.key)
    await sink.store.write([document(first, "a", "b", "c"), document(second, "d")])
    await take_in(sink.store, change(1, 3, "moved"))
    (again,) = await claim(sink.store)
    assert await sink.store.known_hashes("content", 1, [digest(t) for t in "abcdz"]) == {
        digest(t) for t in "abcd"
    }
    assert await sink.store.own_hashes("content", 1, ["[1]", "[9]"]) == {
        "[1]": frozenset(digest(t) for t in "abc")
    }
    outcomes, _ = await sink.store.write([document(again, "c", "a", "d", "b", kept=list("abcd"))])
    assert outcomes == [WRITTEN]
    assert await sink.chunks("[1]") == ["c", "a", "d", "b"]


async def test_a_document_without_chunks_has_no_rows(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "x"))
    (first,) = await claim(sink.store)
    await sink.store.write([document(first, "a", "b")])
    await take_in(sink.store, change(1, 2, "only one"))
    (second,) = await claim(sink.store)
    await sink.store.write([document(second, "only one")])
    assert await sink.chunks("[1]") == ["only one"]
    await take_in(sink.store, change(1, 3, "blank for the chunker"))
    (third,) = await claim(sink.store)
    assert (await sink.store.write([replace(document(third), chunks=[])]))[0] == [WRITTEN]
    assert await sink.chunks("[1]") == []


# -- H18: pending_since


async def test_h18_since_the_first_of_what_waits(sink: Sink) -> None:
    await take_in(sink.store, change(1, 2, "b", since=when(10), changes=2))
    await take_in(sink.store, change(1, 3, "c", since=when(11)))
    row = await sink.pending("[1]")
    assert row is not None
    assert row.pending_since == when(10)
    (claimed,) = await claim(sink.store)
    assert (claimed.pending_since, claimed.changes) == (when(10), 3)


async def test_h18_what_comes_after_the_claim_is_the_next(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "a", since=when(10)))
    (claimed,) = await claim(sink.store)
    await take_in(sink.store, change(1, 2, "b", since=when(11)))
    await take_in(sink.store, change(1, 3, "c", since=when(12)))
    assert await sink.pending("[1]") == (Version(1, 3), "live", when(10), when(11), True, 0)
    assert await embed(sink.store, claimed) == [MOVED_ON]
    assert await sink.chunks("[1]") == ["a"]
    assert await sink.pending("[1]") == (Version(1, 3), "live", when(11), None, False, 0)
    (again,) = await claim(sink.store)
    assert (again.pending_since, again.changes) == (when(11), 2)
    assert await embed(sink.store, again) == [WRITTEN]


async def test_h18_an_expired_claim_takes_the_newest_in(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "a", since=when(10)))
    await claim(sink.store)
    await take_in(sink.store, change(1, 2, "b", since=when(11)))
    await sink.expire_leases()
    (again,) = await claim(sink.store)
    assert (again.version, again.pending_since, again.changes) == (Version(1, 2), when(10), 2)
    assert again.row["title"] == "b"


async def test_a_snapshot_row_has_no_commit_time_and_demotes_nothing(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "a", lane=Lane.BACKFILL))
    row = await sink.pending("[1]")
    assert row is not None
    assert (row.lane, row.pending_since) == ("backfill", None)
    await take_in(sink.store, change(1, 2, "b", since=when(10)))
    await take_in(sink.store, change(1, 3, "c", lane=Lane.BACKFILL))
    assert await sink.pending("[1]") == (Version(1, 3), "live", when(10), None, False, 0)


# -- lanes


async def test_live_goes_first_and_backfill_keeps_its_share(sink: Sink) -> None:
    writes = [change(n, n, f"b{n}", lane=Lane.BACKFILL) for n in range(10)]
    writes += [change(n, n, f"l{n}", since=when(10, n - 10)) for n in range(10, 20)]
    await take_in(sink.store, *writes)
    claims = await claim(sink.store, 10, backfill_share=0.2)
    lanes = [each.lane for each in claims]
    assert (lanes.count(Lane.LIVE), lanes.count(Lane.BACKFILL)) == (8, 2)
    live = [each.pending_since for each in claims if each.lane is Lane.LIVE]
    assert live == [when(10, minute) for minute in range(8)]
    rest = await claim(sink.store, 10, backfill_share=0.2)
    assert [each.lane for each in rest].count(Lane.LIVE) == 2
    assert len(rest) == 10


async def test_one_at_a_time_starves_neither_lane(sink: Sink) -> None:
    random.seed(7)
    writes = [change(n, n, f"b{n}", lane=Lane.BACKFILL) for n in range(30)]
    await take_in(sink.store, *writes, *(change(n, n, f"l{n}", since=when(10)) for n in range(30, 90)))
    lanes = [(await claim(sink.store, 1, backfill_share=0.2))[0].lane for _ in range(40)]
    assert 0 < lanes.count(Lane.BACKFILL) < 20


# -- positions: H21


async def test_positions_are_compared_and_set(sink: Sink) -> None:
    assert await sink.store.positions([AT.topic]) == {}
    await take_in(sink.store, change(1, 0, "a"), upto=1)
    await take_in(sink.store, change(1, 1, "b"), expected=1, upto=2)
    assert await sink.store.positions([AT.topic, "other"]) == {AT: 2}


@pytest.mark.parametrize("expected", [None, 1000, 1101])
async def test_another_owner_writes_nothing(sink: Sink, expected: int | None) -> None:
    """H21."""
    await take_in(sink.store, upto=1100)
    with pytest.raises(PositionConflict):
        await take_in(sink.store, change(1, 1100, "a"), expected=expected, upto=1101)
    assert await sink.alive() == []
    assert await sink.store.positions([AT.topic]) == {AT: 1100}


async def test_h21_a_restored_sink_takes_nothing_in(sink: Sink) -> None:
    await take_in(sink.store, change(1, 999, "a"), upto=1000)
    await sink.restore_positions(AT, 500)
    with pytest.raises(PositionConflict) as caught:
        await take_in(sink.store, change(1, 1099, "b"), expected=1000, upto=1100)
    assert caught.value.exit_code == 1
    assert await sink.store.positions([AT.topic]) == {AT: 500}


async def test_h21_a_sink_that_lost_its_position_row(sink: Sink) -> None:
    other = TopicPartition(AT.topic, 7)
    with pytest.raises(PositionConflict):
        await take_in(sink.store, change(1, 9, "a"), at=other, expected=9, upto=10)
    assert await sink.alive() == []


# -- the guard, and nothing half done


async def test_an_older_version_is_a_conflict_and_changes_nothing(sink: Sink) -> None:
    await take_in(sink.store, change(1, 5, "new"))
    with pytest.raises(Conflict):
        await take_in(sink.store, change(1, 4, "old"), change(2, 4, "also"), upto=6)
    assert await sink.alive() == ["[1]"]
    assert await sink.store.positions([AT.topic]) == {}


async def test_a_newer_lineage_wins_with_a_smaller_offset(sink: Sink) -> None:
    """H11."""
    await take_in(sink.store, change(1, 900, "old"))
    await take_in(sink.store, change(1, 0, "new", lineage=2))
    with pytest.raises(Conflict):
        await take_in(sink.store, change(1, 901, "old again"))
    await embed_all(sink.store)
    assert await sink.chunks("[1]") == ["new"]


async def test_nothing_is_written_when_decide_raises(sink: Sink) -> None:
    def refuse(view: IntakeView) -> IntakePlan:
        raise UnresolvedPlaceholder("body of [1]")

    with pytest.raises(UnresolvedPlaceholder):
        await sink.store.intake(IntakeRequest("content", {AT: None}, ["[1]"]), refuse)
    await take_in(sink.store, change(1, 0, "a"), upto=1)


async def test_decide_sees_records_markers_and_rows_where_asked(sink: Sink) -> None:
    await take_in(
        sink.store, change(1, 1, "a", lsn=10, since=when(10)), change(2, 2, "b"), change(3, 3, None)
    )
    seen: list[IntakeView] = []

    def look(view: IntakeView) -> IntakePlan:
        seen.append(view)
        return IntakePlan()

    keys = ["[1]", "[2]", "[3]", "[4]"]
    await sink.store.intake(IntakeRequest("content", {}, keys, with_rows=frozenset({"[1]"})), look)
    records = seen[0].records
    assert sorted(records) == ["[1]", "[2]", "[3]"]
    assert records["[1]"].row == {"id": 1, "title": "a"}
    assert (records["[1]"].lsn, records["[1]"].fence_lsn, records["[1]"].committed_at) == (10, 10, when(10))
    assert records["[2]"].row is None
    assert records["[3]"].deleted
    assert records["[3]"].text_hash == b""


# -- truncate


async def test_a_fence_removes_what_is_below_it_with_all_that_belongs_to_it(sink: Sink) -> None:
    """H6, H8."""
    await take_in(
        sink.store,
        change(1, 1, "below", lsn=100),
        change(2, 2, "above", lsn=200),
        change(3, 3, "snapshot", lane=Lane.BACKFILL),
        change(4, 4, None, lsn=90),
    )
    await embed_all(sink.store)
    await take_in(sink.store, change(5, 5, "waits", lsn=110))
    (late,) = await claim(sink.store)
    await take_in(sink.store, change(6, 7, "after", lsn=160), fence=Fence(1, 150))
    assert await sink.alive() == ["[2]", "[6]"]
    assert [await sink.chunks(f"[{n}]") for n in range(1, 6)] == [[], ["above"], [], [], []]
    assert await sink.pending("[5]") is None
    assert await embed(sink.store, late) == [DISCARDED]
    assert await sink.pending("[6]") is not None
    assert ("truncated", None) in await sink.actions()


async def test_a_fence_of_a_new_lineage_removes_all_of_the_old(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "old", lsn=10**9))
    await take_in(sink.store, fence=Fence(2, 5))
    assert await sink.alive() == []
    seen: list[Fence | None] = []

    def look(view: IntakeView) -> IntakePlan:
        seen.append(view.fence)
        return IntakePlan()

    await sink.store.intake(IntakeRequest("content", {}, []), look)
    assert seen == [Fence(2, 5)]


# -- generations: H19


async def test_h19_every_fed_generation_gets_a_row(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "a"))
    await sink.add_generation(2)
    await take_in(sink.store, change(2, 2, "b", since=when(10)))
    assert await sink.pending("[2]", 1) is not None
    assert await sink.pending("[2]", 2) is not None
    assert sorted(each.state for each in await sink.store.generations() if each.collection == "content") == [
        "filling",
        "live",
    ]
    for number in (1, 2):
        claims = await claim(sink.store, generations=[number])
        assert {each.generation for each in claims} == {number}, "only what this worker has a recipe for"
        await embed(sink.store, *claims)
    assert await sink.chunks("[2]", 2) == ["b"]
    await take_in(sink.store, change(2, 3, None))
    assert await sink.chunks("[2]", 1) == await sink.chunks("[2]", 2) == []


# -- failures and dead letters


async def test_a_failed_claim_is_retried_later(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "a", since=when(10)))
    (claimed,) = await claim(sink.store)
    await sink.store.fail(claimed, UnusableVector("NaN"), 3600.0)
    assert await sink.pending("[1]") == (Version(1, 1), "live", when(10), None, False, 1)
    assert await claim(sink.store) == []
    await take_in(sink.store, change(1, 2, "b", since=when(11)))
    (again,) = await claim(sink.store)
    assert (again.attempts, again.pending_since) == (0, when(10))


async def test_what_a_dead_worker_had_counts_as_failed(sink: Sink) -> None:
    """It may have died of it. What a live one frees, and what was not leased, has not failed."""
    await take_in(sink.store, change(1, 1, "a", since=when(10)), change(2, 2, "b", since=when(11)))
    await claim(sink.store, 1, slot="w1")
    assert await sink.store.release("w2", died=True) == 0
    assert await sink.store.release("w1", died=True) == 1
    assert await sink.pending("[1]") == (Version(1, 1), "live", when(10), None, False, 1)
    assert await sink.pending("[2]") == (Version(1, 2), "live", when(11), None, False, 0)
    assert {each.key: each.attempts for each in await claim(sink.store, slot="w1")} == {"[1]": 1, "[2]": 0}
    assert await sink.store.release("w1") == 2
    assert {each.key: each.attempts for each in await claim(sink.store)} == {"[1]": 1, "[2]": 0}


async def test_an_expired_lease_counts_as_failed(sink: Sink) -> None:
    """Its worker died and its slot did not come back, or the text is too slow for the lease."""
    await take_in(sink.store, change(1, 1, "a"))
    for attempts in range(3):
        (again,) = await claim(sink.store, slot=f"w{attempts}")
        assert again.attempts == attempts
        await sink.expire_leases()
    await take_in(sink.store, change(1, 2, "b"))
    (new,) = await claim(sink.store)
    assert new.attempts == 1, "a newer text begins anew"


async def test_what_is_given_back_is_as_if_it_had_not_been_claimed(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "a", since=when(10)), change(2, 2, "b", since=when(11)))
    first, second = await claim(sink.store)
    await take_in(sink.store, change(2, 3, "c", since=when(12)))
    await sink.store.give_back([second, first])
    assert await sink.pending("[1]") == (Version(1, 1), "live", when(10), None, False, 0)
    assert await sink.pending("[2]") == (Version(1, 3), "live", when(11), None, False, 0)
    again = await claim(sink.store)
    assert [each.changes for each in again] == [1, 2]
    await sink.store.give_back([first, second])
    assert await embed(sink.store, *again) == [WRITTEN, WRITTEN], "its lease is another's by now"


async def test_a_hopeless_text_becomes_a_dead_letter_until_the_text_changes(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "a", since=when(10)))
    (claimed,) = await claim(sink.store)
    await sink.store.fail(claimed, UnusableVector("NaN\x00"), None)
    assert await sink.pending("[1]") is None
    assert await sink.dead_letters() == [("embed", "[1]")]
    await take_in(sink.store, change(1, 2, "a", embed="keep", published=True))
    assert await sink.dead_letters() == [("embed", "[1]")], "the same text is still not searchable"
    await take_in(sink.store, change(1, 3, "b"))
    assert await sink.dead_letters() == []


async def test_a_hopeless_text_that_has_changed_meanwhile_is_no_dead_letter(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "a", since=when(10)))
    (claimed,) = await claim(sink.store)
    await take_in(sink.store, change(1, 2, "b", since=when(11)))
    await sink.store.fail(claimed, UnusableVector("NaN"), None)
    assert await sink.dead_letters() == []
    assert await sink.pending("[1]") == (Version(1, 2), "live", when(10), None, False, 0)


async def test_a_failure_without_its_lease_changes_nothing(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "a"))
    (late,) = await claim(sink.store)
    await sink.expire_leases()
    (quick,) = await claim(sink.store)
    await sink.store.fail(late, UnusableVector("NaN"), None)
    assert await sink.dead_letters() == []
    assert await embed(sink.store, quick) == [WRITTEN]


async def test_a_truncate_closes_dead_letters_of_texts_that_are_gone(sink: Sink) -> None:
    await take_in(sink.store, change(1, 1, "a", lsn=100))
    (claimed,) = await claim(sink.store)
    await sink.store.fail(claimed, UnusableVector("NaN"), None)
    await take_in(sink.store, fence=Fence(1, 150))
    assert await sink.dead_letters() == []


@pytest.mark.parametrize("text", ["mended", None])
async def test_h38_a_newer_change_closes_older_dead_letters_only(sink: Sink, text: str | None) -> None:
    await take_in(
        sink.store, letters=[undecodable(1, 5), undecodable(2, 6), undecodable(None, 7), undecodable(1, 9)]
    )
    assert len(await sink.dead_letters()) == 4
    await take_in(sink.store, change(1, 8, text))
    assert await sink.dead_letters() == [("intake", "[2]"), ("intake", None), ("intake", "[1]")]


async def test_any_error_text_can_be_kept(sink: Sink) -> None:
    await take_in(sink.store, letters=[undecodable(None, 1, "zero \x00 and half \ud800 a pair")], upto=2)
    assert await sink.dead_letters() == [("intake", None)]


async def test_what_was_neither_applied_nor_deleted_is_audited_as_ranges(sink: Sink) -> None:
    ranges = [OffsetRange(AT, 3, 9, 7, Outcome.DUPLICATE), OffsetRange(AT, 10, 10, 1, Outcome.IGNORED)]
    await take_in(sink.store, change(1, 2, "a"), letters=[undecodable(2, 11)], ranges=ranges)
    assert sorted(action for action, _ in await sink.actions()) == [
        "applied",
        "dead_letter",
        "duplicate",
        "ignored",
    ]


async def test_measures_add_up_and_sketches_replace(sink: Sink) -> None:
    place = ("content", when(10), "chunks_encoded")
    await sink.store.flush_measures({place: 2}, {("content", when(10), "total"): {"bins": {"1": 1}}}, {})
    await sink.store.flush_measures({place: 3}, {("content", when(10), "total"): {"bins": {"1": 2}}}, {})
    await sink.store.flush_measures({}, {}, {})


async def test_good_and_bad_changes_add_up_in_the_history(sink: Sink) -> None:
    await sink.store.flush_measures({}, {}, {("content", when(10)): (2, 1), ("content", when(10, 1)): (1, 0)})
    await sink.store.flush_measures({}, {}, {("content", when(10)): (3, 4), ("customers", when(10)): (0, 1)})
    assert await sink.judged() == [(when(10), 5, 5), (when(10, 1), 1, 0)]
    assert await sink.judged("customers") == [(when(10), 0, 1)]


async def test_a_removed_collection_keeps_no_other_from_being_counted(postgres: PostgresSink) -> None:
    await postgres.store.flush_measures(
        {("gone", when(10), "n"): 1}, {}, {("gone", when(10)): (2, 1), ("content", when(10)): (1, 0)}
    )
    assert await postgres.judged() == [(when(10), 1, 0)]


async def test_a_flush_that_fails_has_counted_nothing(postgres: PostgresSink) -> None:
    """So that it can be given back, and counted once."""
    with pytest.raises(UpwellError):
        await postgres.store.flush_measures(
            {("content", when(10), "n"): 1},
            {},
            {("content", when(10)): (1, 0), ("content", when(11)): (2**63, 0)},
        )
    assert await postgres.judged() == []
    assert await postgres.rows("SELECT * FROM upwell.counter") == []


async def test_two_workers_that_flush_the_same_minutes_do_not_deadlock(dsn: str) -> None:
    """Their minutes come in the order in which they were measured, the locks are taken in that of the key."""
    minutes = [when(10, minute) for minute in range(30)]
    stores = [await PostgresStore.open(dsn, writer=f"w{number}") for number in range(2)]
    orders = [minutes, minutes[::-1]]

    async def flush(store: PostgresStore, order: list[datetime]) -> None:
        for _ in range(20):
            await store.flush_measures({}, {}, {("content", minute): (1, 0) for minute in order})

    await asyncio.gather(*(flush(store, order) for store, order in zip(stores, orders, strict=True)))
    assert await PostgresSink(stores[0], dsn).judged() == [(minute, 40, 0) for minute in minutes]
    for store in stores:
        await store.close()


async def test_the_earliest_deadline_is_claimed_first(sink: Sink) -> None:
    for offset, (key, hour) in enumerate(((1, 11), (2, 9), (3, 12), (4, 10))):
        await take_in(sink.store, change(key, offset, f"text {key}", since=when(hour)))
    claimed = [(await claim(sink.store, 1))[0].key for _ in range(4)]
    assert claimed == ["[2]", "[4]", "[1]", "[3]"]


# -- collections that stand still


async def test_a_blocked_collection_is_seen_until_it_goes_on(sink: Sink) -> None:
    assert await sink.blocked() == {}
    await sink.store.set_blocked("content", "column 'title'\nis \x00 gone")
    await sink.store.set_blocked("customers", "another")
    assert "column 'title'" in (await sink.blocked())["content"]
    await sink.store.set_blocked("content", "column 'body' is gone")
    assert await sink.blocked() == {"content": "column 'body' is gone", "customers": "another"}
    await sink.store.clear_blocked("content")
    assert await sink.blocked() == {"customers": "another"}


async def test_a_column_that_comes_meanwhile_has_its_value(postgres: PostgresSink) -> None:
    """`migrate` adds one, and makes one of another type anew, while a worker that knows neither still takes in."""
    await take_in(postgres.store, change(1, 1, "tea", stars=4))
    await postgres.rows("ALTER TABLE upwell.record_content ADD COLUMN stars int")
    await take_in(postgres.store, change(2, 2, "milk", stars=4))
    await postgres.rows("ALTER TABLE upwell.record_content DROP COLUMN stars")
    await postgres.rows("ALTER TABLE upwell.record_content ADD COLUMN stars text")
    await take_in(postgres.store, change(3, 3, "salt", stars="four"))
    found = await postgres.rows("SELECT _key, stars FROM upwell.record_content ORDER BY _key")
    assert found == [("[1]", None), ("[2]", None), ("[3]", "four")]
    await postgres.rows("ALTER TABLE upwell.record_content ADD COLUMN stars2 int")
    await take_in(postgres.store, change(4, 4, "rye", stars="five", stars2=2))
    assert await postgres.rows("SELECT stars, stars2 FROM upwell.record_content WHERE _key = '[4]'") == [
        ("five", 2)
    ]
