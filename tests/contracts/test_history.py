"""The history of freshness: a minute's worst verdict, and a past that is rolled up without losing a count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import pytest
from psycopg.types.json import Jsonb

from connectors.postgres.history import add_verdicts, keep_history, read_buckets
from connectors.postgres.read import read_report
from connectors.postgres.store import PostgresStore
from schemas.freshness import Bucket, State
from schemas.spec import Slo
from streams.freshness.sketches import freeze, merged, new_sketch, summary
from streams.freshness.slo import slo_status
from tests.contracts.server import Server
from tests.contracts.test_migrate import as_role

Connection = psycopg.Connection[Any]
NOON: Final = datetime(2026, 3, 31, 12, tzinfo=UTC)
MINUTE: Final = timedelta(minutes=1)
FRESH, STALE, INCOMPLETE, UNKNOWN = State.FRESH, State.STALE, State.INCOMPLETE, State.UNKNOWN
WINDOWS: Final = {"content": 30, "customers": 30}


def buckets(connection: Connection, since: datetime = NOON - timedelta(days=99)) -> list[Bucket]:
    return read_buckets(connection, ["content"], since)["content"]


# -- verdicts


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_a_minute_has_the_worst_verdict_given_in_it(server: Server, connection: Connection) -> None:
    """In any order; a later minute begins anew."""
    worst = {"fresh": FRESH, "incomplete": INCOMPLETE, "stale": STALE, "unknown": UNKNOWN}
    ranks = list(worst.values())
    for first, (_, one) in enumerate(worst.items()):
        for second, other in enumerate(ranks):
            at = NOON + (first * 4 + second) * MINUTE
            add_verdicts(connection, at, {"content": (one, 1.0, 0)})
            add_verdicts(connection, at + timedelta(seconds=59.9), {"content": (other, 2.0, 0)})
            names = list(worst)
            expected = Bucket(at, staleness_max_seconds=2.0, **{names[max(first, second)]: 1})
            assert buckets(connection)[-1] == expected, (one, other)


def test_staleness_and_pending_are_the_maxima(connection: Connection) -> None:
    for seconds, pending in ((None, 0), (3.0, 9), (None, 4), (2.0, 2**40)):
        add_verdicts(connection, NOON, {"content": (FRESH, seconds, pending), "gone": (STALE, 1.0, 1)})
    assert buckets(connection) == [Bucket(NOON, fresh=1, staleness_max_seconds=3.0, pending_max=2**31 - 1)]


def test_the_same_evaluation_again_writes_nothing(connection: Connection) -> None:
    add_verdicts(connection, NOON, {"content": (STALE, 3.0, 9)})
    before = connection.execute("SELECT xmin, ctid FROM upwell.freshness_history").fetchall()
    add_verdicts(connection, NOON, {"content": (STALE, 3.0, 9)})
    add_verdicts(connection, NOON, {"content": (FRESH, 1.0, 0)})
    assert connection.execute("SELECT xmin, ctid FROM upwell.freshness_history").fetchall() == before


def test_two_monitors_at_once_are_one(dsn: str, connection: Connection) -> None:
    def evaluate(number: int) -> None:
        names = ["content", "customers"][:: 1 if number else -1]
        with psycopg.connect(dsn, autocommit=True) as other:
            for second in range(40):
                state = STALE if second == 20 + number else FRESH
                at = NOON + timedelta(seconds=second)
                add_verdicts(other, at, {name: (state, float(second), second) for name in names})

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(evaluate, range(2)))
    assert buckets(connection) == [Bucket(NOON, stale=1, staleness_max_seconds=39.0, pending_max=39)]


def test_a_verdict_keeps_what_workers_counted(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO upwell.freshness_history (collection, bucket, good, bad) VALUES ('content', %s, 7, 2)",
        (NOON,),
    )
    add_verdicts(connection, NOON, {"content": (FRESH, 1.0, 0)})
    assert buckets(connection) == [Bucket(NOON, fresh=1, staleness_max_seconds=1.0, good=7, bad=2)]


def test_rows_are_read_from_since_on_and_the_one_before(connection: Connection) -> None:
    for minute in (-9, -5, 0, 1):
        add_verdicts(connection, NOON + minute * MINUTE, {"content": (FRESH, 1.0, 0)})
    found = read_buckets(connection, ["content", "customers"], NOON)
    assert [bucket.start for bucket in found["content"]] == [NOON - 5 * MINUTE, NOON, NOON + MINUTE]
    assert found["customers"] == []


# -- rolled up


def fill_minutes(connection: Connection, first: datetime, last: datetime) -> None:
    """Every minute but each seventh: verdicts of all four kinds, changes, some in minutes without a verdict."""
    connection.execute(
        "INSERT INTO upwell.freshness_history "
        "SELECT c, m, 1, (v IN (2, 3, 4, 6))::int, (v = 1)::int, (v = 7)::int, "
        "(v = 5)::int, n %% 50, n, n %% 13, n %% 3 FROM unnest('{content,customers}'::text[]) c, "
        "(SELECT m, n, n %% 9 AS v FROM (SELECT m, extract(epoch FROM m)::bigint / 60 %% 100000 AS n "
        "FROM generate_series(%s::timestamptz, %s, '1 min') m) g) h WHERE n %% 7 <> 0",
        (first, last),
    )


def totals(rows: list[Bucket]) -> dict[str, int]:
    names = ("fresh", "stale", "incomplete", "unknown", "good", "bad")
    return {name: sum(getattr(row, name) for row in rows) for name in names}


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_minutes_older_than_three_days_become_hours_and_no_sli_changes(
    server: Server, connection: Connection
) -> None:
    now = NOON + timedelta(minutes=20)
    fill_minutes(connection, NOON - timedelta(days=4) + 17 * MINUTE, NOON)
    gap = (NOON - timedelta(days=3, hours=9), NOON - timedelta(days=3, hours=7))
    connection.execute("DELETE FROM upwell.freshness_history WHERE bucket >= %s AND bucket < %s", gap)
    before = buckets(connection)
    assert keep_history(connection, WINDOWS, now)
    after = buckets(connection)
    assert totals(after) == totals(before)
    assert slo_status(Slo(), after, now) == slo_status(Slo(), before, now)
    hours = [row for row in after if row.minutes == 60]
    assert len(hours) == 24 - 1 - 2, "but the first hour, and the two without a row"
    assert all(row.start.minute == 0 for row in hours)
    assert all(row.start < NOON - timedelta(days=3) for row in hours)
    assert max(row.pending_max for row in after) == max(row.pending_max for row in before)
    assert keep_history(connection, WINDOWS, now)
    assert buckets(connection) == after


def test_what_a_worker_adds_late_is_added_to_the_hour(connection: Connection) -> None:
    old = NOON - timedelta(days=5)
    fill_minutes(connection, old - timedelta(hours=2), old + timedelta(hours=2))
    keep_history(connection, WINDOWS, NOON)
    before = totals(buckets(connection))
    for minute in (old, old + 5 * MINUTE):
        connection.execute(
            "INSERT INTO upwell.freshness_history AS h (collection, bucket, good) VALUES ('content', %s, 10) "
            "ON CONFLICT (collection, bucket) DO UPDATE SET good = h.good + 10",
            (minute,),
        )
    keep_history(connection, WINDOWS, NOON)
    after = buckets(connection)
    assert totals(after) == {**before, "good": before["good"] + 20}
    assert [row.minutes for row in after if old <= row.start < old + timedelta(hours=1)] == [60]


def test_a_minute_with_a_worker_in_it_is_not_waited_for(dsn: str, connection: Connection) -> None:
    """A transaction that holds a recent row does not hold up the past, nor the other way round."""
    fill_minutes(connection, NOON - timedelta(days=5), NOON)
    with psycopg.connect(dsn) as worker:
        worker.execute(
            "UPDATE upwell.freshness_history SET good = good + 1 WHERE bucket = %s", (NOON - MINUTE,)
        )
        connection.execute("SET statement_timeout = '10s'")
        assert keep_history(connection, WINDOWS, NOON)
        worker.commit()


def sketch(*values: float) -> Jsonb:
    made = new_sketch()
    for value in values:
        made.add(value)
    return Jsonb(freeze(made))


def fill_measures(connection: Connection, first: datetime, last: datetime, step: timedelta = MINUTE) -> None:
    """Two writers, two stages, two counters."""
    sketches = [sketch(0.01 * n, 0.0, 3.0 + n) for n in range(1, 6)]
    at, number = first, 0
    with connection.cursor() as cursor, connection.pipeline():
        while at < last:
            for writer in ("a@1", "b@1"):
                for stage in ("total", "wait"):
                    values = ("content", at, stage, writer, sketches[number % 5])
                    cursor.execute("INSERT INTO upwell.delay VALUES (%s, %s, %s, %s, %s)", values)
                    counted = ("content", at, f"n_{stage}", writer, number % 7 + 1)
                    cursor.execute("INSERT INTO upwell.counter VALUES (%s, %s, %s, %s, %s)", counted)
            at, number = at + step, number + 1


def report(connection: Connection, window: timedelta) -> tuple[Mapping[Any, int], dict[str, Any]]:
    """As `upwell report` reads it: counters, and what the sketches say. The mean differs by rounding."""
    found = read_report(connection, window, "content")
    sketches = {each.stage: summary(merged([each.sketch])) for each in found.sketches}
    rounded = {
        stage: {name: round(value or 0, 9) for name, value in each.items()}
        for stage, each in sketches.items()
    }
    return found.counters, rounded


def hour_of(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_a_report_over_whole_hours_says_the_same_after_the_roll_up(
    server: Server, connection: Connection
) -> None:
    now = datetime.now(UTC)
    fill_measures(connection, hour_of(now) - timedelta(hours=9), now - 20 * MINUTE, 3 * MINUTE)
    windows = [
        now - hour_of(now) + timedelta(hours=hours) - timedelta(seconds=2) for hours in (0, 1, 7, 8, 9)
    ]
    before = [report(connection, window) for window in windows]
    keep_history(connection, WINDOWS, now)
    after = [report(connection, window) for window in windows]
    assert before == after
    assert before[-1][0]
    kept = connection.execute(
        "SELECT count(*) FILTER (WHERE writer <> ''), count(*) FROM upwell.delay WHERE minute < %s",
        (hour_of(now) - timedelta(hours=6),),
    ).fetchone()
    assert kept == (0, 6), "three hours of two stages"


def test_rolled_up_twice_is_once_and_late_rows_are_added(connection: Connection) -> None:
    start = NOON - timedelta(hours=9)
    fill_measures(connection, start, NOON, 7 * MINUTE)
    everything = datetime.now(UTC) - start + timedelta(days=1)
    before = report(connection, everything)
    for _ in range(2):
        keep_history(connection, WINDOWS, NOON)
    assert report(connection, everything) == before
    fill_measures(connection, start + 7 * MINUTE, start + 8 * MINUTE)
    connection.execute(
        "UPDATE upwell.counter SET writer = 'c@1' WHERE writer <> '' AND minute = %s", (start,)
    )
    grown = report(connection, everything)
    assert grown != before
    keep_history(connection, WINDOWS, NOON)
    assert report(connection, everything) == grown


def test_other_stages_and_counters_become_days(connection: Connection) -> None:
    day = datetime(2026, 3, 26, tzinfo=UTC)
    fill_measures(connection, day + timedelta(hours=1), day + timedelta(hours=23), timedelta(minutes=50))
    everything = datetime.now(UTC) - day + timedelta(days=1)
    before = report(connection, everything)
    keep_history(connection, WINDOWS, NOON)
    assert report(connection, everything) == before
    rows = connection.execute(
        "SELECT stage, count(*), min(minute) FROM upwell.delay GROUP BY stage ORDER BY stage"
    ).fetchall()
    assert rows == [("total", 22, day + timedelta(hours=1)), ("wait", 1, day)]
    assert connection.execute("SELECT count(*), max(minute) FROM upwell.counter").fetchone() == (2, day)


def test_minutes_lose_their_writers_after_ten_minutes(connection: Connection) -> None:
    fill_measures(connection, NOON - 30 * MINUTE, NOON)
    keep_history(connection, WINDOWS, NOON)
    query = "SELECT count(DISTINCT minute), count(*) FROM upwell.{} WHERE writer {} ''"
    for table in ("counter", "delay"):
        assert connection.execute(query.format(table, "=").encode()).fetchone() == (20, 40), table
        assert connection.execute(query.format(table, "<>").encode()).fetchone() == (10, 40), table


def test_sketches_that_a_writer_may_replace_are_left_alone(connection: Connection) -> None:
    """A sink that was away for hours: what the worker holds of its last minutes comes again, whole."""
    last = NOON - timedelta(hours=8)
    fill_measures(connection, last - 10 * MINUTE, last)
    keep_history(connection, WINDOWS, NOON)
    query = "SELECT count(DISTINCT minute) FROM upwell.delay WHERE writer <> ''"
    assert connection.execute(query).fetchone() == (4,), "the newest and three minutes before it"
    connection.execute("INSERT INTO upwell.delay VALUES ('content', %s, 'total', 'a@1', '{}')", (NOON,))
    keep_history(connection, WINDOWS, NOON)
    rows = connection.execute(f"{query} AND writer = 'a@1' AND minute < %s".encode(), (NOON,)).fetchone()
    assert rows == (0,), "it has gone on"
    keep_history(connection, WINDOWS, NOON + timedelta(days=1))
    assert connection.execute(query).fetchone() == (1,), "and the other is dead"


def test_the_ten_slowest_of_an_hour_and_then_of_a_day_stay(connection: Connection) -> None:
    day = datetime(2026, 3, 26, tzinfo=UTC)
    recent = NOON - timedelta(hours=7)
    for first in (day + timedelta(hours=3), day + timedelta(hours=9), recent):
        connection.execute(
            "INSERT INTO upwell.slow_change SELECT 'content', %(first)s::timestamptz + n * interval '4 min', n::text, "
            "n * 10 + extract(hour FROM %(first)s::timestamptz AT TIME ZONE 'UTC'), now(), now(), '{\"embed\": 1}' "
            "FROM generate_series(0, 13) n",
            {"first": first},
        )
    for _ in range(2):
        keep_history(connection, WINDOWS, NOON)
    rows = connection.execute("SELECT bucket, seconds FROM upwell.slow_change ORDER BY 1, 2 DESC").fetchall()
    assert [(at, seconds) for at, seconds in rows if at < recent] == [
        (day, float(n * 10 + hour)) for n in (13, 12, 11, 10, 9) for hour in (9, 3)
    ]
    assert [seconds for at, seconds in rows if at == hour_of(recent)] == [
        float(n * 10 + 5) for n in range(13, 3, -1)
    ]


async def test_a_sketch_is_packed_on_its_way_in_and_whole_on_its_way_out(
    dsn: str, connection: Connection
) -> None:
    """Also beside one that a worker of before has written."""
    now = datetime.now(UTC)
    minute = now.replace(second=0, microsecond=0)
    made, other = new_sketch(), new_sketch()
    for number in range(1, 200):
        made.add(number * 0.01, number)
        other.add(number * 0.02)
    store = await PostgresStore.open(dsn, writer="w")
    await store.flush_measures({}, {("content", minute, "total"): freeze(made)}, {})
    await store.close()
    size = "SELECT octet_length(sketch::text) FROM upwell.delay"
    (packed,) = connection.execute(size).fetchone() or (0,)
    assert packed < len(json.dumps(freeze(made))) * 0.8
    assert read_report(connection, timedelta(minutes=5)).sketches[0].sketch == freeze(made)
    connection.execute(
        "INSERT INTO upwell.delay VALUES ('content', %s, 'total', 'old@1', %s)",
        (minute, Jsonb(freeze(other))),
    )
    whole = merged([freeze(made), freeze(other)])
    for at in (now, now + timedelta(days=1)):
        keep_history(connection, WINDOWS, at)
        (found,) = read_report(connection, timedelta(days=2)).sketches
        assert summary(merged([found.sketch])) == pytest.approx(summary(whole))
    assert connection.execute("SELECT count(*), max(writer) FROM upwell.delay").fetchone() == (1, "")


# -- deleted


def test_what_is_beyond_the_window_and_a_day_is_deleted(connection: Connection) -> None:
    for days in (2, 4, 20, 40):
        at = NOON - timedelta(days=days, minutes=1)
        for name in ("content", "customers", "gone"):
            connection.execute(
                "INSERT INTO upwell.delay VALUES (%s, %s, 'total', '', '{\"zero\": 1}')", (name, at)
            )
            connection.execute("INSERT INTO upwell.counter VALUES (%s, %s, 'n', '', 1)", (name, at))
            connection.execute(
                "INSERT INTO upwell.slow_change VALUES (%s, %s, 'k', 1, now(), now())", (name, at)
            )
        add_verdicts(connection, at, {"content": (FRESH, 1.0, 0), "customers": (FRESH, 1.0, 0)})
    keep_history(connection, {"content": 3, "customers": 30}, NOON)
    for table in ("delay", "counter", "slow_change"):
        rows = connection.execute(
            f"SELECT collection, count(*) FROM upwell.{table} GROUP BY 1 ORDER BY 1".encode()
        ).fetchall()
        assert rows == [("content", 1), ("customers", 3), ("gone", 3)], table
    found = read_buckets(connection, list(WINDOWS), NOON - timedelta(days=99))
    assert {name: len(rows) for name, rows in found.items()} == {"content": 1, "customers": 3}


def test_only_the_canarys_old_audit_rows_go(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO upwell.audit (at, collection, action) SELECT clock_timestamp() - age::interval, name, 'applied' "
        "FROM unnest('{59 min,61 min,3 h}'::text[]) age, unnest('{canary,content}'::text[]) name"
    )
    keep_history(connection, WINDOWS)
    rows = connection.execute(
        "SELECT collection, count(*) FROM upwell.audit GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert rows == [("canary", 1), ("content", 3)]
    assert as_role(connection, "upwell_worker", "SELECT upwell.drop_canary_audit()")
    assert not as_role(connection, "upwell_worker", "DELETE FROM upwell.audit WHERE collection = 'canary'")


# -- by whom


def test_a_second_one_at_once_does_nothing(dsn: str, connection: Connection) -> None:
    fill_minutes(connection, NOON - timedelta(days=5), NOON - timedelta(days=4))
    before = buckets(connection)
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtext('upwell.history'), 0)")
        assert not keep_history(connection, WINDOWS, NOON)
        assert buckets(connection) == before
        other.execute("SELECT pg_advisory_unlock_all()")
    assert keep_history(connection, WINDOWS, NOON)
    held = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
    assert held == (0,), "the lock is given back"


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_the_workers_role_is_enough(server: Server, dsn: str, connection: Connection) -> None:
    fill_measures(connection, NOON - timedelta(hours=9), NOON - timedelta(hours=8), 9 * MINUTE)
    fill_minutes(connection, NOON - timedelta(days=5), NOON - timedelta(days=4))
    with psycopg.connect(
        server.dsn(connection.info.dbname, options="-c role=upwell_worker"), autocommit=True
    ) as mine:
        add_verdicts(mine, NOON, {"content": (FRESH, 1.0, 0)})
        assert keep_history(mine, WINDOWS, NOON)
        assert buckets(mine)


# -- how large it is

FILL: Final = """
CREATE TEMP TABLE wide AS
SELECT n, (SELECT string_agg(key || ':' || (1 + (key * n) % 9)::float8, ' ')
             FROM (SELECT DISTINCT (n * 7 + (random() + random() + random()) * bins)::int AS key
                     FROM generate_series(1, bins)) k) AS keys, bins
  FROM generate_series(1, 40) n, unnest('{25,35,90}'::int[]) bins;
CREATE TEMP VIEW sketched AS
SELECT n, bins, jsonb_build_object('bins', keys, 'zero', 0, 'sum', n * 1.2345678901234, 'min', 0.01234567890123,
       'max', n * 2.345678901234) AS sketch FROM wide;

INSERT INTO upwell.collection (name, table_name, key_columns, threshold_seconds)
SELECT 'collection_' || n, 'shop.table_' || n, '{id}', 30 FROM generate_series(3, 10) n;
CREATE TEMP TABLE c AS SELECT name, row_number() OVER (ORDER BY name) AS c FROM upwell.collection;

-- Verdicts in minutes for three days and an hour, in hours before.
INSERT INTO upwell.freshness_history
SELECT name, at, 60, 58, 1, 0, 1, 12.5, 345, 5000, 7 FROM c,
       generate_series(:at - interval '30 days', :at - interval '3 days 2 hours', '1 hour') at;
INSERT INTO upwell.freshness_history (collection, bucket, fresh, staleness_max_seconds, pending_max, good, bad)
SELECT name, at, 1, 4.5, 12, 80, 1 FROM c, generate_series(:at - interval '3 days 1 hour', :at, '1 min') at;

-- Two workers, six stages: their own rows of half an hour, minutes of seven hours (of four but for `total`), hours of
-- three days and a half, then days but for `total`.
INSERT INTO upwell.delay
SELECT name, at, stage, '', sketch FROM c, unnest('{capture,queue,wait,embed,write,total}'::text[]) stage,
       generate_series(:at - interval '30 days', :at - interval '5 hours', '1 hour') WITH ORDINALITY AS t(at, n)
  JOIN sketched s ON bins = 90 AND s.n = 1 + t.n % 40
 WHERE CASE stage WHEN 'total' THEN at < :at - interval '7 hours' ELSE at > :at - interval '3 days 12 hours' END;
INSERT INTO upwell.delay
SELECT name, at, stage, '', sketch FROM c, unnest('{capture,queue,wait,embed,write}'::text[]) stage,
       generate_series(:at - interval '30 days 12 hours', :at - interval '4 days 12 hours', '1 day')
       WITH ORDINALITY AS t(at, n)
  JOIN sketched s ON bins = 90 AND s.n = 1 + t.n % 40;
INSERT INTO upwell.delay
SELECT name, at, stage, '', sketch FROM c, unnest('{capture,queue,wait,embed,write,total}'::text[]) stage,
       generate_series(:at - interval '7 hours', :at - interval '31 min', '1 min') WITH ORDINALITY AS t(at, n)
  JOIN sketched s ON bins = 35 AND s.n = 1 + t.n % 40
 WHERE stage = 'total' OR at >= :at - interval '4 hours';
INSERT INTO upwell.delay
SELECT name, at, stage, writer, sketch FROM c, unnest('{capture,queue,wait,embed,write,total}'::text[]) stage,
       unnest('{worker-0@1764000000,worker-1@1764000000}'::text[]) writer,
       generate_series(:at - interval '30 min', :at, '1 min') WITH ORDINALITY AS t(at, n)
  JOIN sketched s ON bins = 25 AND s.n = 1 + t.n % 40;

-- Eight counters.
INSERT INTO upwell.counter
SELECT name, at, 'outcome_' || k, writer, 12 FROM c, generate_series(1, 8) k,
       unnest('{worker-0@1764000000,worker-1@1764000000}'::text[]) writer,
       generate_series(:at - interval '30 min', :at, '1 min') at;
INSERT INTO upwell.counter
SELECT name, at, 'outcome_' || k, '', 12 FROM c, generate_series(1, 8) k,
       generate_series(:at - interval '7 hours', :at - interval '31 min', '1 min') at;
INSERT INTO upwell.counter
SELECT name, at, 'outcome_' || k, '', 12 FROM c, generate_series(1, 8) k,
       generate_series(:at - interval '3 days 12 hours', :at - interval '8 hours', '1 hour') at;
INSERT INTO upwell.counter
SELECT name, at, 'outcome_' || k, '', 12 FROM c, generate_series(1, 8) k,
       generate_series(:at - interval '30 days 12 hours', :at - interval '4 days 12 hours', '1 day') at;

-- Three slow changes a minute.
INSERT INTO upwell.slow_change
SELECT name, at, '[' || k * 1234567 || ']', k, at, at,
       '{"capture": 0.0312, "queue": 0.0123, "wait": 1.2345, "embed": 0.0456, "write": 0.0078}'
  FROM c, generate_series(1, 3) k, generate_series(:at - interval '7 hours', :at, '1 min') at;
INSERT INTO upwell.slow_change
SELECT name, at, '[' || k * 1234567 || ']', k, at, at,
       '{"capture": 0.0312, "queue": 0.0123, "wait": 1.2345, "embed": 0.0456, "write": 0.0078}'
  FROM c, generate_series(1, 10) k,
       generate_series(:at - interval '3 days 12 hours', :at - interval '8 hours', '1 hour') at;
"""
FRESHNESS_TABLES: Final = (
    *(
        "watermark",
        "evaluation",
        "freshness_history",
        "delay",
        "counter",
        "slow_change",
        "blocked",
        "monitor",
    ),
    *("canary_seen", "gap", "canary_reference"),
)


def test_thirty_days_of_ten_collections_are_small(connection: Connection) -> None:
    """The steady state, an hour after it was last rolled up, which is then done: what was rolled up before is filled in
    as it was left, for a roll-up of it changes nothing (tested above). VACUUM is what autovacuum does. 25 bins are some
    40 changes a minute, worker and collection."""
    connection.execute("SELECT setseed(0.5)")
    connection.execute(FILL.replace(":at", f"'{NOON.isoformat()}'::timestamptz").encode())
    assert keep_history(connection, {f"collection_{n}": 30 for n in range(3, 11)} | WINDOWS, NOON)
    connection.execute("VACUUM ANALYZE")
    sizes = {
        table: (
            connection.execute("SELECT pg_total_relation_size(%s)", (f"upwell.{table}",)).fetchone() or (0,)
        )[0]
        for table in FRESHNESS_TABLES
    }
    print({table: f"{size / 1e6:.1f} MB" for table, size in sizes.items()})
    assert sum(sizes.values()) < 50e6, sizes
    minutes = connection.execute("SELECT count(*) FROM upwell.delay WHERE writer <> ''").fetchone()
    assert minutes == (2 * 6 * 10 * 11,), "ten minutes of the workers' own"
