"""Notifications as Debezium 3.7 sent them, and what each means for a first load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from connectors.debezium.canary import CanaryEvent
from connectors.debezium.canary import parse as canary
from connectors.debezium.notifications import Notification, parse

RECORDED = Path(__file__).parent.parent / "fixtures" / "recorded" / "incremental_snapshot.json"


def recorded() -> list[dict[str, Any]]:
    messages = json.loads(RECORDED.read_text(encoding="utf-8"))["messages"]
    return [m["decoded"]["value"] for m in messages if m["topic"].endswith(".notifications")]


def test_a_recorded_scan_from_start_to_end() -> None:
    parsed = [found for at, value in enumerate(recorded()) if (found := parse(at, value))]
    assert [n.kind for n in parsed] == [
        "STARTED",
        "DATA_COLLECTIONS_RESOLVED",
        "IN_PROGRESS",
        "TABLE_SCAN_COMPLETED",
        "COMPLETED",
    ]
    assert {n.signal for n in parsed} == {"load-0123456789abcdef"}
    progress, ended = parsed[2], parsed[3]
    assert (progress.table, progress.chunk, progress.chunks) == ("shop.customers", 1, 1)
    assert (ended.table, ended.status, ended.scanned_rows) == ("shop.customers", "SUCCEEDED", 2)
    assert [n.succeeded for n in parsed] == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("status", "succeeded"),
    [
        ("SUCCEEDED", True),
        ("EMPTY", True),
        ("SQL_EXCEPTION", False),
        ("NO_PRIMARY_KEY", False),
        ("SKIPPED", False),
        ("UNKNOWN_SCHEMA", False),
        ("", False),
    ],
)
def test_completed_is_not_succeeded(status: str, succeeded: bool) -> None:
    """H24."""
    ended = Notification(5, "load-1", "TABLE_SCAN_COMPLETED", "shop.content", status)
    assert ended.ended
    assert ended.succeeded is succeeded


def test_other_notifications_are_not_ours() -> None:
    assert parse(0, {"aggregate_type": "Initial Snapshot", "type": "SKIPPED", "id": "x"}) is None


def test_a_canary_is_its_number_and_its_place_in_the_log() -> None:
    event = {"after": {"id": 1, "nonce": "42"}, "source": {"lsn": 700}, "op": "u"}
    assert canary(3, event) == CanaryEvent(3, 42, 700)
    assert canary(3, {**event, "source": {"lsn": None}}) == CanaryEvent(3, 42, None)
    assert canary(3, {**event, "after": None}) is None
    assert canary(3, {**event, "after": {"nonce": "somebody else's"}}) is None
