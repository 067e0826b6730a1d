"""What a forecast is computed from, as the sink has it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from connectors.postgres.forecast import SQL, read_queue
from schemas.sink import IntakePlan, Lane
from streams.freshness.forecast import forecast_of
from streams.freshness.measures import Measures
from tests.contracts.sinks import PostgresSink
from tests.contracts.steps import change, take_in

pytestmark = pytest.mark.parametrize("server", [16, 18], indirect=True)

Connection = psycopg.Connection[Any]


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


async def test_what_waits_by_deadline_lane_and_generation(
    postgres: PostgresSink, connection: Connection
) -> None:
    await postgres.add_generation(2)
    await take_in(postgres.store, *(change(n, n, f"a{n}", since=ago(40)) for n in range(3)))
    await take_in(postgres.store, *(change(n, n, f"b{n}", since=ago(29.5)) for n in range(3, 8)))
    await take_in(postgres.store, *(change(n, n, f"c{n}", since=ago(-60)) for n in range(8, 10)))
    await take_in(postgres.store, *(change(n, n, f"d{n}", lane=Lane.BACKFILL) for n in range(10, 14)))
    reading = read_queue(connection)
    content, customers = reading.collections
    assert (content.name, content.threshold_seconds, content.late, content.backfill) == ("content", 30, 3, 4)
    assert [texts for _, texts in content.waiting] == [5, 2]
    assert 0 < content.waiting[0][0] < 1.5
    assert content.pending == 14
    assert reading.filling == 14
    assert (customers.name, customers.pending) == ("customers", 0)


async def test_rates_and_workers(postgres: PostgresSink, connection: Connection) -> None:
    assert (read_queue(connection).texts_per_second, read_queue(connection).workers) == (None, 0)
    await postgres.store.register_worker("test", "vm", 1)
    await postgres.rows(
        "INSERT INTO upwell.worker (slot, host, pid, seen_at) VALUES ('old', 'vm', 2, now() - interval '1 min')"
    )
    await postgres.rows(
        "INSERT INTO upwell.collection (name, table_name, key_columns, threshold_seconds) "
        "VALUES ('canary', 'upwell.canary', '{id}', 30)"
    )
    measures, now = Measures(), datetime.now(UTC)
    measures.worked("customers", now - timedelta(minutes=30), 10, 5.0)
    await flush(postgres, measures)
    assert read_queue(connection).texts_per_second == pytest.approx(2)
    measures.worked("content", now, 30, 3.0)
    measures.worked("customers", now, 10, 1.0)
    measures.worked("canary", now, 500, 1.0)
    loaded = change(9, 9, "a", lane=Lane.BACKFILL)
    plan = IntakePlan(writes=[*(change(n, n, "a", since=now) for n in range(9)), loaded])
    measures.taken_in("content", [], plan, now - timedelta(seconds=60))
    await flush(postgres, measures)
    reading = read_queue(connection)
    assert reading.texts_per_second == pytest.approx(10)
    assert reading.workers == 1
    arrivals = {each.name: each.arrivals_per_second for each in reading.collections}
    assert 9 / 181 <= arrivals.pop("content") <= 9 / 119
    assert arrivals == {"canary": 0, "customers": 0}


async def test_a_forecast_of_the_sink(postgres: PostgresSink, connection: Connection) -> None:
    await postgres.store.register_worker("test", "vm", 1)
    measures = Measures()
    measures.worked("content", datetime.now(UTC), 20, 20.0)
    await flush(postgres, measures)
    await take_in(postgres.store, *(change(n, n, f"a{n}", since=ago(0)) for n in range(90)))
    found = forecast_of(read_queue(connection), backfill_share=0.25)
    assert found["content"].missed_in_seconds == pytest.approx(30, abs=5)
    assert found["customers"].missed_in_seconds is None
    assert found["content"].eta_seconds == pytest.approx(90, rel=0.1)


async def test_much_is_sampled_and_little_is_read(postgres: PostgresSink, connection: Connection) -> None:
    connection.execute(
        'INSERT INTO upwell.pending (collection, generation, key, lineage, "offset", lane, deadline, changes, '
        "taken_in_at) SELECT 'content', 1, n::text, 1, n, 'live', "
        "clock_timestamp() + (n % 60 - 30) * interval '1 s', 1, clock_timestamp() FROM generate_series(1, 10000) n"
    )
    found = read_queue(connection, blocks=60).collections[0]
    assert found.pending == pytest.approx(10_000, rel=0.6)
    assert found.late == pytest.approx(5000, rel=0.6)
    assert 18 <= len(found.waiting) <= 20
    assert read_queue(connection).collections[0].pending == 10_000
    plan = connection.execute("EXPLAIN (FORMAT JSON) " + SQL["queue"].as_string(), {"blocks": 60}).fetchone()
    assert plan is not None
    assert "Sample Scan" in str(plan[0])
    assert "Seq Scan on pending" not in str(plan[0])


async def flush(postgres: PostgresSink, measures: Measures) -> None:
    drained = measures.drain()
    await postgres.store.flush_measures(drained.counters, drained.sketches, drained.judged)
