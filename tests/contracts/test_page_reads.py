"""What the page reads of a real sink."""

from __future__ import annotations

from datetime import timedelta

import pytest

from schemas.errors import SettingsError, SinkUnavailable
from schemas.freshness import Bucket
from streams.freshness.web import SinkReads
from tests.contracts.sinks import PostgresSink
from tests.contracts.steps import change, embed_all, take_in, when

DAY = timedelta(days=1)


def reads(dsn: str) -> SinkReads:
    return SinkReads(dsn, kafka_retention=DAY, audit_retention=DAY)


async def test_report_and_explanation(postgres: PostgresSink) -> None:
    await take_in(postgres.store, change(42, 5, "a lantern", since=when(9)), upto=6)
    await embed_all(postgres.store)
    page = reads(postgres.dsn)
    assert set(page.report(timedelta(hours=1))["collections"]) == {"content", "customers"}
    found = page.explain("content", "42")
    assert (found["state"], found["key"], found["text"]) == ("live", "[42]", "a lantern")
    assert isinstance(found["at"], str)
    assert page.explain("content", "7")["state"] == "unknown"
    with pytest.raises(SettingsError):
        page.explain("content", "seven")


async def test_history_is_the_collections_own_and_of_the_window(postgres: PostgresSink) -> None:
    await postgres.rows(
        "INSERT INTO upwell.freshness_history (collection, bucket, minutes, fresh, stale, staleness_max_seconds, good) "
        "SELECT name, date_trunc('minute', clock_timestamp()) - make_interval(mins => ago), 1, 1, 0, ago, 7 "
        "FROM (VALUES ('content', 5), ('content', 3), ('content', 500), ('customers', 4)) AS t (name, ago)"
    )
    found = reads(postgres.dsn).history("content", timedelta(hours=1))
    assert [each.staleness_max_seconds for each in found] == [5.0, 3.0]
    assert found[0] == Bucket(found[0].start, fresh=1, staleness_max_seconds=5.0, good=7)
    assert reads(postgres.dsn).history("nothing", DAY) == []


def test_a_sink_that_is_away_is_said_so() -> None:
    with pytest.raises(SinkUnavailable):
        reads("host=/nonexistent dbname=x").report(DAY)
