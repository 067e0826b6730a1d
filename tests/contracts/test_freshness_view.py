"""`upwell.freshness`: what an application is told when the monitor is well, silent, or wrong; and who may ask."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from schemas.freshness import EVALUATION_SECONDS, Bucket
from schemas.spec import Slo
from streams.freshness.slo import slo_status
from tests.contracts.server import Server
from tests.contracts.test_migrate import as_role

Connection = psycopg.Connection[Any]


def evaluate(connection: Connection, **changed: Any) -> None:
    """As a monitor does. `age` and `watermark_age` in seconds; a watermark_age of None is no watermark."""
    values: dict[str, Any] = {
        "collection": "content",
        "verdict": "FRESH",
        "reason": "all is searchable",
        "age": 1.0,
        "watermark_age": 5.0,
        "ahead": 0.0,
        "slo": {},
        "delay": {},
        **changed,
    }
    connection.execute(
        "INSERT INTO upwell.evaluation "
        "(collection, lineage, evaluated_at, verdict, reason, threshold_seconds, watermark, "
        "source_ahead_seconds, pending, dead_letters, delay, slo) VALUES (%(collection)s, 1, "
        "clock_timestamp() - make_interval(secs => %(age)s), %(verdict)s, %(reason)s, 30, "
        "clock_timestamp() - make_interval(secs => %(watermark_age)s), %(ahead)s, 3, 2, %(delay)s, %(slo)s) "
        "ON CONFLICT (collection) DO UPDATE SET evaluated_at = excluded.evaluated_at, verdict = excluded.verdict, "
        "reason = excluded.reason, watermark = excluded.watermark, "
        "source_ahead_seconds = excluded.source_ahead_seconds, delay = excluded.delay, slo = excluded.slo",
        {**values, "slo": Jsonb(values["slo"]), "delay": Jsonb(values["delay"])},
    )


def said(connection: Connection) -> tuple[str, str]:
    row = connection.execute(
        "SELECT verdict, reason FROM upwell.freshness WHERE collection = 'content'"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.mark.parametrize("server", [16, 18], indirect=True)
def test_the_verdict_of_the_monitor_is_shown(server: Server, connection: Connection) -> None:
    for verdict in ("FRESH", "STALE", "INCOMPLETE", "UNKNOWN"):
        evaluate(connection, verdict=verdict, reason=f"it is {verdict}")
        assert said(connection) == (verdict, f"it is {verdict}")


def test_without_a_monitor_nothing_is_known(connection: Connection) -> None:
    assert said(connection) == ("UNKNOWN", "no monitor has evaluated it yet; run `upwell monitor`")
    row = connection.execute("SELECT staleness_seconds, evaluated_at FROM upwell.freshness").fetchone()
    assert row == (None, None)


@pytest.mark.parametrize("verdict", ["FRESH", "STALE", "INCOMPLETE"])
def test_an_evaluation_that_is_old_is_no_answer(connection: Connection, verdict: str) -> None:
    evaluate(connection, verdict=verdict, age=EVALUATION_SECONDS - 2)
    assert said(connection)[0] == verdict
    evaluate(connection, verdict=verdict, age=EVALUATION_SECONDS + 0.1)
    found, reason = said(connection)
    assert (found, reason) == ("UNKNOWN", "not evaluated for 15 s; see that `upwell monitor` runs")


def test_nor_is_one_of_a_time_that_is_still_to_come(connection: Connection) -> None:
    """The server's clock went back an hour: this may be an hour old."""
    evaluate(connection, age=-3600)
    found, reason = said(connection)
    assert found == "UNKNOWN"
    assert "clock" in reason


def test_a_watermark_that_has_aged_past_the_threshold_is_stale(connection: Connection) -> None:
    evaluate(connection, watermark_age=27)
    assert said(connection)[0] == "FRESH"
    evaluate(connection, watermark_age=30.5)
    assert said(connection) == ("STALE", "no round has completed for 31 s")


def test_the_source_clock_is_what_counts(connection: Connection) -> None:
    evaluate(connection, watermark_age=5, ahead=40)
    assert said(connection) == ("STALE", "no round has completed for 45 s")
    evaluate(connection, watermark_age=65, ahead=-60)
    assert said(connection)[0] == "FRESH"
    evaluate(connection, watermark_age=5, ahead=-60)
    row = connection.execute(
        "SELECT staleness_seconds FROM upwell.freshness WHERE collection = 'content'"
    ).fetchone()
    assert row == (0.0,)


def test_without_a_watermark_it_is_never_fresh(connection: Connection) -> None:
    """`greatest` leaves NULLs out: a staleness of 0 would be made of nothing."""
    evaluate(connection, watermark_age=None)
    assert said(connection) == ("STALE", "no round has completed")
    evaluate(connection, watermark_age=None, verdict="INCOMPLETE")
    assert said(connection)[0] == "INCOMPLETE"
    row = connection.execute(
        "SELECT staleness_seconds FROM upwell.freshness WHERE collection = 'content'"
    ).fetchone()
    assert row == (None,)


def test_slo_and_delays_have_columns_of_their_own(connection: Connection) -> None:
    now = datetime.now(UTC)
    slo = slo_status(Slo(), [Bucket(now - timedelta(minutes=2), fresh=1, good=99, bad=1)], now).as_json()
    evaluate(connection, slo=slo, delay={"p50": 0.1, "p95": 0.5, "p99": 0.9, "max": 2.5})
    row = connection.execute(
        "SELECT sli, objective, budget_remaining_ratio, burn_rates, "
        "delay_p50_seconds, delay_p99_seconds, delay_max_seconds, "
        "pending, dead_letters FROM upwell.freshness WHERE collection = 'content'"
    ).fetchone()
    assert row is not None
    assert row[:3] == (0.99, 0.99, slo["budget_remaining_ratio"])
    assert row[3] == slo["burn_rates"]
    assert row[4:] == (0.1, 0.9, 2.5, 3, 2)


def test_the_canary_is_no_collection_of_the_users(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO upwell.collection (name, table_name, key_columns, threshold_seconds) "
        "VALUES ('canary', 'upwell.canary', '{number}', 15)"
    )
    names = connection.execute("SELECT collection FROM upwell.freshness ORDER BY 1").fetchall()
    assert names == [("content",), ("customers",)]


def test_a_reader_may_ask_and_a_passer_by_may_not(connection: Connection) -> None:
    connection.execute("DROP ROLE IF EXISTS passer_by")
    connection.execute("CREATE ROLE passer_by")
    for query in (
        "SELECT * FROM upwell.freshness",
        "SELECT * FROM upwell.freshness_history",
        "SELECT id, is_stale, stale_since FROM upwell.content",
        "SELECT stale_since FROM upwell.search_content('package:fake', '[1,0,0,0]')",
    ):
        assert as_role(connection, "upwell_reader", query), query
        assert not as_role(connection, "passer_by", query), query
    assert not as_role(connection, "upwell_reader", "DELETE FROM upwell.freshness_history")
    assert not as_role(connection, "upwell_reader", "SELECT * FROM upwell.evaluation")
    assert not as_role(connection, "upwell_reader", "SELECT upwell.drop_canary_audit()")
