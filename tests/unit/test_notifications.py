"""Notifications as Debezium 3.7 sent them, and what each means for a first load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
    ended = Notification(5, "load-1", "TABLE_SCAN_COMPLETED", "shop.content", status)
    assert ended.ended
    assert ended.succeeded is succeeded


def test_other_notifications_are_not_ours() -> None:
    assert parse(0, {"aggregate_type": "Initial Snapshot", "type": "SKIPPED", "id": "x"}) is None
