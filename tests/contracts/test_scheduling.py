"""Whose turn it is (ADR 0012): by deadline across collections, the late behind the timely with a share of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from connectors.postgres.embed_store import SQL
from connectors.postgres.generations import SQL as GENERATIONS
from connectors.postgres.migrate import migrate_sink
from schemas.sink import Claim, Lane
from tests.contracts.sinks import PostgresSink, Sink, layout
from tests.contracts.steps import change, embed, take_in

BOTH = [("content", 1), ("customers", 1)]


@pytest.fixture
async def tight(sink: Sink) -> Sink:
    """`content` within 15 s, `customers` within 300 s."""
    await sink.set_threshold("content", 15)
    await sink.set_threshold("customers", 300)
    return sink


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


async def claim(sink: Sink, limit: int, backfill_share: float = 0.0) -> Sequence[Claim]:
    return await sink.store.claim(BOTH, "w1", limit, backfill_share, 60.0)


def names(claims: Sequence[Claim]) -> list[tuple[str, str]]:
    return [(each.collection, each.key) for each in claims]


async def test_a_burst_where_there_is_time_does_not_hold_up_where_there_is_none(tight: Sink) -> None:
    burst = [change(n, n, f"b{n}", since=ago(60)) for n in range(50)]
    await take_in(tight.store, *burst, collection="customers")
    await take_in(tight.store, change(1, 1, "a", since=ago(1)), change(2, 2, "b", since=ago(2)))
    claims = await claim(tight, 5)
    assert names(claims)[:2] == [("content", "[2]"), ("content", "[1]")]
    assert [each.collection for each in claims[2:]] == ["customers"] * 3


async def test_of_what_is_live_alone_nothing_of_a_backfill_is_taken(tight: Sink) -> None:
    await take_in(tight.store, *(change(n, n, f"b{n}", lane=Lane.BACKFILL) for n in range(10)))
    assert not await tight.store.claim(BOTH, "w1", 5, 0.5, 60.0, live_only=True)
    await take_in(tight.store, change(50, 50, "late", since=ago(600)), change(51, 51, "timely", since=ago(1)))
    claims = await tight.store.claim(BOTH, "w1", 5, 0.5, 60.0, live_only=True)
    assert sorted(each.key for each in claims) == ["[50]", "[51]"]


async def test_what_has_less_time_left_goes_first_whatever_its_threshold(tight: Sink) -> None:
    await take_in(tight.store, change(1, 1, "a", since=ago(1)))
    await take_in(tight.store, change(2, 2, "b", since=ago(295)), collection="customers")
    await take_in(tight.store, change(3, 3, "c", since=ago(8)))
    assert names(await claim(tight, 3)) == [("customers", "[2]"), ("content", "[3]"), ("content", "[1]")]


async def test_the_late_go_behind_those_that_can_still_be_in_time_but_move_on(tight: Sink) -> None:
    late = [change(n, n, f"l{n}", since=ago(1000 - n)) for n in range(40)]
    await take_in(tight.store, *late, collection="customers")
    await take_in(tight.store, *(change(n, n, f"t{n}", since=ago(1)) for n in range(40)))
    claims = await claim(tight, 16)
    assert [each.collection for each in claims] == ["content"] * 12 + ["customers"] * 4
    assert [each.key for each in claims[12:]] == ["[0]", "[1]", "[2]", "[3]"]


async def test_what_one_does_not_need_is_the_others(tight: Sink) -> None:
    await take_in(tight.store, *(change(n, n, f"l{n}", since=ago(1000 - n)) for n in range(9)))
    assert [each.key for each in await claim(tight, 6)] == [f"[{n}]" for n in range(6)]
    await take_in(tight.store, change(20, 20, "t", since=ago(1)))
    assert [each.key for each in await claim(tight, 6)] == ["[20]", "[6]", "[7]", "[8]"]


async def test_each_of_the_three_has_its_share(tight: Sink) -> None:
    await take_in(tight.store, *(change(n, n, f"b{n}", lane=Lane.BACKFILL) for n in range(30)))
    await take_in(tight.store, *(change(n, n, f"l{n}", since=ago(1000)) for n in range(30, 60)))
    await take_in(tight.store, *(change(n, n, f"t{n}", since=ago(1)) for n in range(60, 90)))
    claims = await claim(tight, 16, backfill_share=0.25)
    kinds = [
        "backfill" if each.lane is Lane.BACKFILL else "late" if int(each.key[1:-1]) < 60 else "timely"
        for each in claims
    ]
    assert kinds == ["timely"] * 9 + ["late"] * 3 + ["backfill"] * 4


async def test_one_at_a_time_starves_neither_the_late_nor_the_timely(tight: Sink) -> None:
    random.seed(7)
    await take_in(tight.store, *(change(n, n, f"l{n}", since=ago(1000)) for n in range(40)))
    await take_in(tight.store, *(change(n, n, f"t{n}", since=ago(1)) for n in range(40, 90)))
    keys = [(await claim(tight, 1))[0].key for _ in range(40)]
    assert 0 < sum(int(key[1:-1]) < 40 for key in keys) < 20


async def test_a_row_of_a_load_that_changes_has_the_deadline_of_the_change(tight: Sink) -> None:
    await take_in(tight.store, change(1, 1, "a", lane=Lane.BACKFILL), change(2, 2, "b", since=ago(10)))
    await take_in(tight.store, change(1, 3, "c", since=ago(12)))
    await take_in(tight.store, change(3, 4, "d", since=ago(290)), collection="customers")
    assert [each.key for each in await claim(tight, 3)] == ["[1]", "[2]", "[3]"]


async def test_h18_what_changed_after_the_claim_has_a_deadline_of_its_own(tight: Sink) -> None:
    """A key that changes all the time is else late for ever, and behind all that are in time."""
    await take_in(tight.store, change(1, 1, "a", since=ago(100)))
    (first,) = await claim(tight, 1)
    await take_in(tight.store, change(1, 2, "b", since=ago(2)))
    await embed(tight.store, first)
    late = [change(n, n, f"l{n}", since=ago(50)) for n in range(10, 20)]
    await take_in(tight.store, change(2, 3, "c", since=ago(5)), change(3, 4, "d", since=ago(1)), *late)
    assert [each.key for each in await claim(tight, 4)][:3] == ["[2]", "[1]", "[3]"]


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_a_changed_threshold_holds_for_what_waits_already(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    await take_in(postgres.store, *(change(n, n, f"a{n}", since=ago(10 + n)) for n in range(3)))
    await take_in(postgres.store, change(7, 7, "b", lane=Lane.BACKFILL))
    (held,) = await postgres.store.claim([("content", 1)], "w1", 1, 0.0, 60.0)
    before = await deadlines(postgres)
    migrate_sink(connection, [replace(layout("content"), threshold_seconds=120.0), layout("customers")])
    after = await deadlines(postgres)
    assert {key: (after[key] - before[key]).total_seconds() for key in after} == {
        "[0]": 90,
        "[1]": 90,
        "[2]": 0,
        "[7]": 0,
    }
    assert held.key == "[2]"


async def test_a_switch_gives_what_waits_the_deadline_of_its_change(postgres: PostgresSink) -> None:
    """Until then it had that of its fill."""
    await postgres.add_generation(2)
    await take_in(postgres.store, change(1, 1, "a", lane=Lane.BACKFILL))
    early = ago(500)
    await postgres.rows("UPDATE upwell.pending SET deadline = %s", early)
    since = ago(5)
    await take_in(postgres.store, change(1, 2, "b", since=since))
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as connection:
        await connection.execute(GENERATIONS["swap_lanes"], {"collection": "content", "number": 2})
    found = await postgres.rows("SELECT generation, lane, deadline FROM upwell.pending ORDER BY generation")
    assert found == [
        (1, "backfill", since + timedelta(seconds=30)),
        (2, "live", since + timedelta(seconds=30)),
    ]


async def deadlines(postgres: PostgresSink) -> dict[str, datetime]:
    return dict(await postgres.rows("SELECT key, deadline FROM upwell.pending"))


@pytest.mark.parametrize("server", [16, 18], indirect=True)
async def test_a_claim_reads_no_more_than_it_takes(
    postgres: PostgresSink, connection: psycopg.Connection[Any]
) -> None:
    """With many rows waiting, late, timely and of a load, each part is read by its deadline index."""
    connection.execute(
        'INSERT INTO upwell.pending (collection, generation, key, lineage, "offset", lane, deadline, changes, '
        "taken_in_at) SELECT 'content', 1, n::text, 1, n, CASE n %% 3 WHEN 0 THEN 'backfill' ELSE 'live' END, "
        "clock_timestamp() + (n - 10000) * interval '1 ms', 1, clock_timestamp() FROM generate_series(1, %s) n",
        (20_000,),
    )
    connection.execute("ANALYZE upwell.pending")
    plan = claim_plan(connection)
    nodes = list(walk(plan))
    scans = [node for node in nodes if "Scan" in node["Node Type"] and node.get("Relation Name") == "pending"]
    assert {node["Node Type"] for node in scans} == {"Index Scan"}
    assert sorted(node["Index Name"] for node in scans) == [
        "pending_backfill",
        "pending_live",
        "pending_live",
        "pending_pkey",
    ]
    assert all("deadline" in node["Index Cond"] for node in scans if node["Index Name"] == "pending_live")
    assert max(node["Actual Rows"] for node in scans) <= 16
    assert sum(node.get("Rows Removed by Filter", 0) for node in scans) == 0


def claim_plan(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    parameters = {
        "collections": ["content", "customers"],
        "generations": [1, 1],
        "slot": "w1",
        "limit": 16,
        "most_backfill": 16,
        "reserved": 4,
        "late_share": 0.25,
        "chance": 0.5,
        "lease_seconds": 60.0,
    }
    explain = sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) ") + SQL["claim"]
    with connection.transaction(force_rollback=True):
        row = connection.execute(explain, parameters).fetchone()
    assert row is not None
    return row[0][0]["Plan"]  # type: ignore[no-any-return]


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from walk(below)
