"""What a report reads, of one moment; and what workers write of their slowest changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from connectors.postgres.capture_state import connect_sink
from connectors.postgres.read import read_report
from schemas.freshness import SlowChange, State
from schemas.readings import Readings
from tests.contracts.sinks import PostgresSink

pytestmark = pytest.mark.parametrize("server", [16, 18], indirect=True)

NOW = datetime.now(UTC)
MINUTE = NOW.replace(second=0, microsecond=0)
HOUR = timedelta(hours=1)


def change(
    seconds: float, key: str = "[1]", collection: str = "content", ago: timedelta = HOUR / 60
) -> SlowChange:
    visible = NOW - ago
    return SlowChange(collection, key, seconds, visible - timedelta(seconds=seconds), visible, {"wait": 0.5})


def read(postgres: PostgresSink, window: timedelta = HOUR, collection: str | None = None) -> Readings:
    with connect_sink(postgres.dsn) as connection:
        return read_report(connection, window, collection)


async def flush(postgres: PostgresSink, *changes: SlowChange, bucket: datetime = MINUTE) -> None:
    await postgres.store.flush_measures({}, {}, {}, {("content", bucket): changes})


async def test_a_writer_replaces_its_slowest_and_no_other_ones(postgres: PostgresSink) -> None:
    await flush(postgres, change(1.25, "[1]"), change(2.5, "[2]"))
    await postgres.rows("UPDATE upwell.slow_change SET writer = 'another' WHERE key = '[1]'")
    await flush(postgres, change(3.5, "[3]"))
    await flush(postgres, change(9.0, "[4]"), bucket=MINUTE - timedelta(minutes=1))
    found = read(postgres).slow
    assert [(row.key, row.seconds, row.stages) for row in found] == [
        ("[4]", 9.0, {"wait": 0.5}),
        ("[3]", 3.5, {"wait": 0.5}),
        ("[1]", 1.25, {"wait": 0.5}),
    ]
    assert found[1] == change(3.5, "[3]")


async def test_ten_of_each_collection_of_the_window_also_where_they_are_kept_by_the_day(
    postgres: PostgresSink,
) -> None:
    many = [change(number, f"[{number}]") for number in range(1, 15)]
    await flush(postgres, *many)
    await flush(postgres, change(99, "[99]", ago=HOUR * 2), bucket=MINUTE - HOUR * 2)
    await flush(postgres, change(50, "[50]"), bucket=NOW - timedelta(hours=20))
    assert [row.seconds for row in read(postgres).slow] == [50, *range(14, 5, -1)]
    assert [row.seconds for row in read(postgres, HOUR * 3).slow][:2] == [99, 50]


async def test_verdict_history_and_monitors_are_read_and_the_canary_is_not(postgres: PostgresSink) -> None:
    await postgres.rows(
        "INSERT INTO upwell.collection SELECT (jsonb_populate_record(c, jsonb_build_object('name', 'canary'))).* "
        "FROM upwell.collection c WHERE name = 'content' ON CONFLICT DO NOTHING"
    )
    for name in ("content", "canary"):
        await postgres.rows(
            "INSERT INTO upwell.evaluation (collection, lineage, evaluated_at, verdict, reason, threshold_seconds, "
            "watermark, slo) VALUES (%s, 1, clock_timestamp(), 'FRESH', 'rounds complete', 30, "
            """clock_timestamp() - interval '5 s', '{"sli": 0.5}')""",
            name,
        )
        for ago in (5, 4, 300):
            await postgres.rows(
                "INSERT INTO upwell.freshness_history (collection, bucket, fresh, staleness_max_seconds) "
                "VALUES (%s, %s, 1, 1.5)",
                name,
                MINUTE - timedelta(minutes=ago),
            )
    await flush(postgres, change(1.0, collection="canary"))
    await postgres.rows("INSERT INTO upwell.monitor (name, host, pid, url) VALUES ('m', 'box', 7, '')")
    found = read(postgres)
    assert [row.collection for row in found.freshness] == ["content", "customers"]
    assert [row.name for row in found.collections] == ["content", "customers"]
    freshness = found.freshness[0]
    assert (freshness.collection, freshness.verdict.state, freshness.slo) == (
        "content",
        State.FRESH,
        {"sli": 0.5},
    )
    assert freshness.staleness_seconds is not None
    assert 5 <= freshness.staleness_seconds < 30
    assert {name: [row.start for row in rows] for name, rows in found.buckets.items()} == {
        "content": [MINUTE - timedelta(minutes=5), MINUTE - timedelta(minutes=4)],
        "customers": [],
    }
    assert (found.slow, [row.name for row in found.monitors]) == ([], ["m"])


async def test_never_evaluated_is_unknown(postgres: PostgresSink) -> None:
    await postgres.rows("DELETE FROM upwell.evaluation")
    (freshness,) = read(postgres, collection="content").freshness
    assert (freshness.verdict.state, freshness.evaluated_at, freshness.slo) == (State.UNKNOWN, None, {})
    assert read(postgres).buckets == {"content": [], "customers": []}
