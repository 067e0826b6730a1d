"""The newest buckets are read again each time, the others now and then."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from schemas.freshness import Bucket
from streams.freshness.summaries import renewed

AT = datetime(2026, 1, 1, tzinfo=UTC)


def bucket(minute: int, good: int = 0) -> Bucket:
    return Bucket(AT + timedelta(minutes=minute), good=good)


def test_what_is_newer_replaces_what_was_read_before() -> None:
    before = [bucket(0, 1), bucket(5, 1), bucket(6, 1)]
    recent = [bucket(4, 9), bucket(5, 2), bucket(6, 2), bucket(7, 2)]
    found = renewed(before, recent, AT + timedelta(minutes=5))
    assert found == [bucket(0, 1), bucket(5, 2), bucket(6, 2), bucket(7, 2)]
