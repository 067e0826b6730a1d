"""What the monitor reads and writes, and what intake says of a watermark that was wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from connectors.postgres.freshness import Evaluation, FreshnessStore, Proven
from connectors.postgres.generations import Generations
from connectors.postgres.migrate import migrate_sink
from connectors.postgres.read import read_report
from schemas.change import Change, Operation, Origin, Version
from schemas.freshness import State, Verdict
from schemas.sink import IntakePlan, IntakeRequest, IntakeView, Lane
from streams.freshness.report import build_report
from streams.intake.core import decide
from tests.contracts.sinks import PostgresSink, Sink, generation, layout
from tests.contracts.steps import AT, change, claim, digest, embed, embed_all, take_in, undecodable, when

TICK = timedelta(microseconds=1)


@pytest.fixture
def connection(postgres: PostgresSink) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.dsn, autocommit=True) as found:
        yield found


@pytest.fixture
def store(connection: psycopg.Connection[Any]) -> FreshnessStore:
    connection.execute("INSERT INTO upwell.lineage VALUES (1, 'shop_1')")
    return FreshnessStore(connection)


# -- violations


async def arrive(sink: Sink, offset: int, committed_at: datetime, **origin: Any) -> None:
    """An update of row 1 as an intake takes it in."""
    made = Origin(committed_at=committed_at, **origin)
    changed = Change(Operation.UPDATE, AT, Version(1, offset), "[1]", made, {"id": 1, "title": f"t{offset}"})
    changed = replace(changed, text=f"t{offset}", text_hash=digest(f"t{offset}"))

    def decided(view: IntakeView) -> IntakePlan:
        return replace(decide([changed], view, lambda change, row: change), positions={})

    await sink.store.intake(IntakeRequest("content", {}, ["[1]"]), decided)


async def test_a_change_from_before_the_published_watermark_is_counted(sink: Sink) -> None:
    await sink.publish(when(10))
    await arrive(sink, 1, when(10) + TICK)
    assert await sink.violations() == 0
    await arrive(sink, 2, when(10))
    assert await sink.violations() == 1
    await arrive(sink, 2, when(10))
    assert await sink.violations() == 1, "what is dropped as a duplicate is none"
    await arrive(sink, 3, when(9), snapshot=True)
    assert await sink.violations() == 1, "a snapshot row's time is no commit's"


async def test_a_watermark_of_an_ended_lineage_says_nothing(sink: Sink) -> None:
    await sink.publish(when(10), lineage=0)
    await arrive(sink, 1, when(9))
    assert await sink.violations() == 0


# -- the snapshot


async def test_what_is_not_reflected(postgres: PostgresSink, store: FreshnessStore) -> None:
    """Pending texts, dead letters and keys in doubt, each since its oldest commit (H18, H38)."""
    await take_in(postgres.store, change(1, 1, "a", since=when(10)), change(2, 2, "b", since=when(11)))
    claimed = await claim(postgres.store, 1)
    await take_in(postgres.store, change(1, 3, "c", since=when(12)), upto=4)
    seen = store.look(["content", "customers", "gone"], [AT.topic])
    assert sorted(seen.collections) == ["content", "customers"]
    found = seen.collections["content"]
    assert (found.pending, found.pending_since, found.unreflected) == (2, when(10), when(10))
    assert seen.positions == {AT.topic: {0: 4}}
    assert seen.lineage == 1
    assert seen.collections["customers"].unreflected is None
    await embed(postgres.store, *claimed)
    await embed_all(postgres.store)
    await take_in(postgres.store, letters=[undecodable(3, 4)])
    found = store.look(["content"], []).collections["content"]
    assert (found.dead_letters, found.letter_since, found.unreflected) == (1, when(9), when(9))
    await take_in(postgres.store, change(3, 5, "", since=when(13)))
    await take_in(postgres.store, repairs_wanted=frozenset(["[2]"]))
    found = store.look(["content"], []).collections["content"]
    assert (found.dead_letters, found.doubted, found.unreflected) == (0, when(11), when(11))


async def test_a_dead_letter_that_does_not_say_when(postgres: PostgresSink, store: FreshnessStore) -> None:
    """H35."""
    await take_in(postgres.store, letters=[replace(undecodable(None, 7), committed_at=None)])
    found = store.look(["content", "customers"], []).collections
    assert (found["content"].undated, found["content"].dead_letters) == ([(AT.topic, 0, 7)], 1)
    assert not found["customers"].undated


async def test_what_waits_in_a_generation_that_is_not_live_is_not_looked_at(
    postgres: PostgresSink, store: FreshnessStore
) -> None:
    """H39."""
    await postgres.add_generation(2)
    await take_in(postgres.store, change(1, 1, "a", since=when(10)))
    await embed_all(postgres.store)
    found = store.look(["content"], []).collections["content"]
    assert (found.pending, found.unreflected, found.generation) == (0, None, 1)


async def test_first_loads_are_counted_apart(postgres: PostgresSink, store: FreshnessStore) -> None:
    """H37."""
    await take_in(postgres.store, change(1, 1, "a", lane=Lane.BACKFILL), change(2, 2, "b", since=when(9)))
    found = store.look(["content"], []).collections["content"]
    assert (found.pending, found.unreflected) == (1, when(9))
    counted = build_report(read_report(store.connection, timedelta(hours=1))).collections
    assert counted["content"].pending == {"live": 1, "backfill": 1}
    assert counted["customers"].pending == {"live": 0, "backfill": 0}


def test_blocked_collections_that_a_worker_still_speaks_of(
    connection: psycopg.Connection[Any], store: FreshnessStore
) -> None:
    connection.execute("INSERT INTO upwell.blocked VALUES ('content', 'w1', 'no column title')")
    connection.execute(
        "INSERT INTO upwell.blocked VALUES ('customers', 'w1', 'old', now(), now() - interval '21 s')"
    )
    found = store.look(["content", "customers"], []).collections
    assert [each.reason for each in found["content"].blocked] == ["no column title"]
    assert not found["customers"].blocked


# -- watermarks


def watermark(connection: psycopg.Connection[Any]) -> datetime | None:
    row = connection.execute("SELECT watermark FROM upwell.watermark WHERE collection = 'content'").fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def test_a_watermark_only_grows_within_a_lineage(
    connection: psycopg.Connection[Any], store: FreshnessStore
) -> None:
    for hour, then in ((10, 10), (9, 10), (11, 11)):
        store.raise_watermarks(1, [Proven("content", 1, hour, when(hour))])
        assert watermark(connection) == when(then)
    store.raise_watermarks(2, [Proven("content", 1, 1, when(8))])
    assert watermark(connection) == when(8), "another lineage begins anew"
    store.raise_watermarks(1, [Proven("content", 1, 2, when(12))])
    assert watermark(connection) == when(8), "a monitor that has not noticed yet"


async def test_a_switch_takes_back_what_is_not_searchable_any_more(
    postgres: PostgresSink, connection: psycopg.Connection[Any], store: FreshnessStore
) -> None:
    """H39: what waited in the generation beside was no matter; now it is."""
    now = datetime.now(when(1).tzinfo)
    with Generations.open(postgres.dsn) as generations:
        generations.create(generation(number=0, fingerprint="f2", state="filling"))
        await take_in(postgres.store, change(1, 1, "a", since=now))
        await embed_all(postgres.store)
        for each in await claim(postgres.store, generations=[2]):
            await embed(postgres.store, each)
        await take_in(postgres.store, change(1, 2, "b", since=now))
        await embed_all(postgres.store)
        store.raise_watermarks(1, [Proven("content", 1, 1, now + timedelta(seconds=5))])
        generations.switch("content", 2)
        assert watermark(connection) == now - TICK
        store.raise_watermarks(1, [Proven("content", 1, 2, now + timedelta(seconds=6))])
        assert watermark(connection) == now - TICK, "proven of the generation before"
        store.raise_watermarks(1, [Proven("content", 2, 3, now + timedelta(seconds=7))])
        assert watermark(connection) == now + timedelta(seconds=7)


def test_a_later_evaluation_stays(connection: psycopg.Connection[Any], store: FreshnessStore) -> None:
    """Two monitors at once are harmless."""
    fresh = Evaluation("content", Verdict(State.FRESH, "all is well"), 30.0, when(9), 3, 1)
    store.write(1, when(11), 0.5, [fresh])
    store.write(1, when(10), 0.0, [replace(fresh, verdict=Verdict(State.STALE, "late"))])
    row = connection.execute(
        "SELECT verdict, reason, watermark, source_ahead_seconds, pending, dead_letters FROM upwell.evaluation"
    ).fetchall()
    assert row == [("FRESH", "all is well", when(9), 0.5, 3, 1)]
    connection.execute("UPDATE upwell.evaluation SET evaluated_at = now() + interval '1 hour'")
    store.write(1, when(12), 0.5, [replace(fresh, pending=4)])
    row = connection.execute("SELECT pending FROM upwell.evaluation").fetchall()
    assert row == [(4,)], "a clock that has gone back keeps nobody from knowing"
    store.summarise({"content": ({"p50": 0.1}, {"sli": 1.0})})
    row = connection.execute("SELECT delay ->> 'p50', slo ->> 'sli' FROM upwell.evaluation").fetchall()
    assert row == [("0.1", "1.0")]


# -- the canary


@pytest.fixture
def canary(connection: psycopg.Connection[Any], store: FreshnessStore) -> FreshnessStore:
    made = replace(layout("canary", ()), table="upwell.canary")
    migrate_sink(connection, [made])
    return store


def embedded(connection: psycopg.Connection[Any], text: str, vector: str) -> None:
    connection.execute(
        "INSERT INTO upwell.record_canary (_key, _row, _text_hash, _lineage, _offset, _deleted, _streamed, "
        "_taken_in_at) VALUES ('[1]', '{}', '', 1, 1, false, true, now()) ON CONFLICT DO NOTHING"
    )
    connection.execute("DELETE FROM upwell.embedding_canary_g1")
    connection.execute(
        "INSERT INTO upwell.embedding_canary_g1 VALUES ('[1]', 0, '', %s, %s, now())", (text, vector)
    )


def test_the_canary_has_nothing_to_load(canary: FreshnessStore, connection: psycopg.Connection[Any]) -> None:
    states = connection.execute("SELECT name, load_state FROM upwell.collection ORDER BY name").fetchall()
    assert states == [("canary", "complete"), ("content", "incomplete"), ("customers", "incomplete")]


def test_the_canary_is_found_by_a_search(canary: FreshnessStore, connection: psycopg.Connection[Any]) -> None:
    assert canary.find_canary().number == 0
    embedded(connection, "canary of upwell, number 41", "[1, 0, 0, 0]")
    found = canary.find_canary()
    assert (found.number, found.error) == (41, "")
    embedded(connection, "canary of upwell, number 42", "[0.9, 0.1, 0, 0]")
    found = canary.find_canary()
    assert (found.number, found.error) == (42, "")
    assert found.cosine == pytest.approx(0.9939, abs=1e-4)


def test_a_canary_of_an_ended_lineage_is_none(
    canary: FreshnessStore, connection: psycopg.Connection[Any]
) -> None:
    """After a restore of the source the next numbers are below it."""
    embedded(connection, "canary of upwell, number 57", "[1, 0, 0, 0]")
    connection.execute("INSERT INTO upwell.lineage VALUES (2, 'shop_2')")
    assert canary.find_canary().number == 0
    connection.execute("UPDATE upwell.record_canary SET _lineage = 2")
    assert canary.find_canary().number == 57


def test_a_canary_of_another_direction_is_no_canary(
    canary: FreshnessStore, connection: psycopg.Connection[Any]
) -> None:
    """A model that gives nonsense is as bad as none."""
    embedded(connection, "canary of upwell, number 1", "[1, 0, 0, 0]")
    assert canary.find_canary().number == 1
    embedded(connection, "canary of upwell, number 2", "[0, 1, 0, 0]")
    found = canary.find_canary()
    assert found.number == 0
    assert "cosine of 0.000" in found.error


def test_the_canary_without_its_collection(store: FreshnessStore) -> None:
    assert "upwell migrate" in store.find_canary().error


def test_the_canarys_topic_is_read_on(store: FreshnessStore) -> None:
    assert store.canary_seen(1) is None
    store.see_canary(1, 10, 7)
    store.see_canary(1, 9, 6)
    assert store.canary_seen(1) == (10, 7)
    assert store.canary_seen(2) is None


def test_a_gap_is_said_until_the_next_lineage(
    connection: psycopg.Connection[Any], store: FreshnessStore
) -> None:
    store.add_gap(1, "canary 8 is missing")
    store.add_gap(1, "canary 8 is missing")
    assert store.look([], []).gaps == ["canary 8 is missing"]
    connection.execute("INSERT INTO upwell.lineage VALUES (2, 'shop_2')")
    assert store.look([], []).gaps == []


async def test_a_live_change_of_a_row_of_a_load_that_is_claimed(
    postgres: PostgresSink, store: FreshnessStore
) -> None:
    await take_in(postgres.store, change(1, 1, "a", lane=Lane.BACKFILL))
    await claim(postgres.store)
    await take_in(postgres.store, change(1, 2, "b", since=when(10)))
    assert store.look(["content"], []).collections["content"].unreflected == when(10)


async def test_a_key_is_in_doubt_since_the_first_change_that_made_it_so(
    postgres: PostgresSink, store: FreshnessStore
) -> None:
    for offset, hour in ((1, 10), (2, 12)):
        await take_in(postgres.store, change(1, offset, "", since=when(hour)))
        await take_in(postgres.store, change(2, 5 + offset, "", since=when(hour)))
        await take_in(postgres.store, repairs_wanted=frozenset(["[1]"]))
    assert store.look(["content"], []).collections["content"].doubted == when(10)


async def test_a_worker_that_was_killed_is_known_at_once(
    postgres: PostgresSink, store: FreshnessStore, connection: psycopg.Connection[Any]
) -> None:
    await postgres.store.register_worker("w1", "host", 7)
    connection.execute("INSERT INTO upwell.worker VALUES ('w2', 'host', 8)")
    connection.execute("INSERT INTO upwell.worker VALUES ('w3', 'host', 9, now(), now() - interval '21 s')")
    connection.execute("SELECT pg_advisory_lock(hashtext('upwell.worker'), hashtext('w3'))")
    assert {each.slot: each.alive for each in store.look([], []).workers} == {
        "w1": True,
        "w2": False,
        "w3": False,
    }
    await postgres.store.close()
    assert not any(each.alive for each in store.look([], []).workers)


async def test_what_is_overdue_counts_before_it_is_searchable(
    postgres: PostgresSink, store: FreshnessStore, connection: psycopg.Connection[Any]
) -> None:
    """Each change that waits past the threshold of 30 s, by the source's clock; a load's rows and others' do not."""
    now = datetime.now(when(1).tzinfo)
    late, soon = now - timedelta(seconds=40), now - timedelta(seconds=25)
    await take_in(postgres.store, change(1, 1, "a", since=late, changes=3), change(2, 2, "b", since=soon))
    await take_in(postgres.store, change(3, 3, "c", lane=Lane.BACKFILL))
    assert store.overdue(["content", "customers"], 0.0) == {"content": 3, "customers": 0}
    assert store.overdue(["content"], 10.0) == {"content": 4}, "the source's clock is ahead"
    await take_in(postgres.store, letters=[replace(undecodable(4, 4), committed_at=late)])
    assert store.overdue(["content"], 0.0) == {"content": 4}
    await embed_all(postgres.store)
    assert store.overdue(["content"], 0.0) == {"content": 1}
